//! Settings under `/proc/sys/net`, of the network namespace the calling thread is in: use it inside
//! [`NetNs::run`](super::netns::NetNs::run).

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::error::{KernelError, Result};

/// Writes `value` to `/proc/sys/KEY`, where `key` is a path such as `net/ipv6/conf/veth-red/disable_ipv6`: segments
/// rather than dots, as interface names may have dots. `Ok(false)` when there is no such setting (IPv6 compiled out
/// or switched off at boot, no such interface).
pub fn write(key: &str, value: &str) -> Result<bool> {
    let path = path_of(key)?;
    match fs::write(path, value) {
        Ok(()) => Ok(true),
        Err(why) if why.kind() == ErrorKind::NotFound => Ok(false),
        Err(why) => {
            let read_only = why.raw_os_error() == Some(Errno::EROFS as i32);
            let error = KernelError::new(format_args!("set {key} to {value}"), why);
            Err(if read_only { error.with_remedy("mount /proc/sys writable") } else { error })
        }
    }
}

/// Reads `/proc/sys/KEY` without the final line break; `Ok(None)` when there is no such setting.
pub fn read(key: &str) -> Result<Option<String>> {
    match fs::read_to_string(path_of(key)?) {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        Err(why) if why.kind() == ErrorKind::NotFound => Ok(None),
        Err(why) => Err(KernelError::new(format_args!("read {key}"), why)),
    }
}

/// Only `net/` belongs to the network namespace; everything else is the machine's and not ours to touch.
pub(super) fn path_of(key: &str) -> Result<PathBuf> {
    let plain = key.split('/').all(|part| !matches!(part, "" | "." | "..")) && !key.contains('\0');
    if !(plain && key.starts_with("net/")) {
        return Err(KernelError::refused(format_args!("use the setting {key:?}"), "it is no path under net/"));
    }
    Ok(Path::new("/proc/sys").join(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_under_net() {
        for key in ["", "net", "net/", "/net/core", "net/../kernel/panic", "net/ipv6/./x", "net//x", "kernel/panic"] {
            assert!(path_of(key).is_err(), "{key:?}");
        }
        let dotted = path_of("net/ipv4/conf/eth0.5/rp_filter").unwrap();
        assert_eq!(dotted, Path::new("/proc/sys/net/ipv4/conf/eth0.5/rp_filter"));
    }

    #[test]
    fn what_is_not_there_is_no_error() {
        assert_eq!(read("net/no/such/setting").unwrap(), None);
        assert!(read("net/ipv4/ip_forward").unwrap().is_some_and(|value| value == "0" || value == "1"));
    }
}
