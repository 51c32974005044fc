//! Files that need not be there.

use std::fs;
use std::io::{ErrorKind, Result};
use std::path::Path;

/// Deletes a file, or what has its name; `Ok(false)` when there is none. What is not there need not be deleted: a file
/// system that is read-only would refuse even that.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path).and_then(|_| fs::remove_file(path)) {
        Ok(()) => Ok(true),
        Err(why) if why.kind() == ErrorKind::NotFound => Ok(false),
        Err(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_removed_once() {
        let path = std::env::temp_dir().join(format!("nsnet-file-test-{}", std::process::id()));
        fs::write(&path, "").unwrap();
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
        // A link that leads nowhere is there.
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert!(remove(&path).unwrap());
        assert!(remove(&std::env::temp_dir()).is_err());
    }
}
