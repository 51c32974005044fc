//! Capturing: the ring that the dataplane tells of frames in, and the entry that has it do so.
//!
//! ```text
//!   CAPTURE     what is captured, until when: renewed once a second, so that who is killed does not leave it on
//!   RINGS       the ring, made by who captures and freed with its last user
//!   CAPTURING   each CPU's numbers, and what was lost
//! ```

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use aya::maps::of_maps::HashOfMaps;
use aya::maps::{Array, Map, MapData, PerCpuArray, PerCpuValues, RingBuf};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_RINGBUF;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use nsnet_common::layout::{CAPTURE_LEASE_NS, Capture, Capturing, Event, names};
use zerocopy::FromBytes as _;

use super::clock::monotonic;
use super::dataplane::{Dataplane, refused};
use super::error::{Doing as _, KernelError, Result};
use super::host::Host;
use super::maps::{Maps, get_slot, set_slot};
use super::netns::NetNs;
use super::store::{BPFFS, Store};

/// What is to be captured.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// See [`capture_modes`](nsnet_common::layout::capture_modes).
    pub modes: u32,
    /// Bytes of each frame, 1 to [`MAX_SNAPLEN`](nsnet_common::layout::MAX_SNAPLEN).
    pub snaplen: u32,
    /// Bytes of the ring: a power of two, and a page at least.
    pub ring: u32,
}

/// A capture that is on, until it is dropped.
pub struct Session {
    maps: Maps,
    ring: RingBuf<MapData>,
    // Kept open: what was lost is to be told though the dataplane is gone.
    capturing: PerCpuArray<MapData, Capturing>,
    keeper: Option<Keeper>,
}

/// Renews the entry while somebody else waits for the reader of the file.
struct Keeper {
    thread: JoinHandle<()>,
    /// Set to have it end.
    is_done: Arc<AtomicBool>,
    /// Set by it when the dataplane is gone, or somebody else's capture is on.
    is_over: Arc<AtomicBool>,
}

/// How often the entry is renewed.
const RENEWAL: Duration = Duration::from_secs(1);
/// The one place in `RINGS`.
const PLACE: u32 = 0;

impl Session {
    /// Begins to capture. There is one capture at a time: a second one is refused, and told whose the first is.
    pub fn begin(host: &Host, request: Request) -> Result<Self> {
        const WHAT: &str = "capture";
        if !host.dataplane.is_loaded() {
            return Err(KernelError::refused(WHAT, "there is no dataplane to capture at")
                .with_remedy("`nsnet network add` makes one"));
        }
        let maps = host.maps();
        let ring = new_ring(request.ring)?;
        // Two that begin at the same time must not both find the entry free.
        let _lock = Store::locked(&host.key, host.on_note)?;
        let mut control = maps.capture_map()?;
        let now = monotonic()?;
        let found = get_slot(&control, names::CAPTURE, 0)?;
        if now < found.until && is_running(found.pid) {
            let why = format!("another capture is on, by process {}", found.pid);
            return Err(KernelError::refused(WHAT, why).with_remedy("wait for its end, or end it"));
        }
        maps.reset_capturing()?;
        maps.rings()?.insert(PLACE, &ring, 0).map_err(|error| refused("enter the ring", error))?;
        let Request { modes, snaplen, .. } = request;
        let capture = Capture { until: 0, modes, snaplen, pid: std::process::id(), pad: 0 };
        let mut session = Self { capturing: maps.capturing()?, maps: host.maps(), ring, keeper: None };
        renew(&mut control, capture)?;
        // What fails from here on ends the session, which takes back what was entered.
        session.keeper = Some(Keeper::spawn(host.maps(), capture)?);
        Ok(session)
    }

    /// Whether it goes on: not when the dataplane was taken down.
    pub fn is_on(&self) -> bool {
        self.keeper.as_ref().is_some_and(|keeper| !keeper.is_over.load(Ordering::Relaxed))
    }

    /// Stops the dataplane from telling more; what it has told can still be read.
    pub fn stop(&mut self) {
        let Some(keeper) = self.keeper.take() else { return };
        let was_over = keeper.end();
        if was_over {
            // The entry is of another, or nobody looks at it.
            return;
        }
        // What cannot be taken back ends by itself, within seconds.
        let _off =
            self.maps.capture_map().and_then(|mut control| set_slot(&mut control, names::CAPTURE, 0, Capture::OFF));
        let _freed = self.maps.rings().map(|mut rings| rings.remove(&PLACE));
    }

    /// Calls `each` with the next events in the ring and the bytes behind them, `most` at most; tells how many.
    pub fn read(&mut self, most: usize, mut each: impl FnMut(Event, &[u8])) -> usize {
        for count in 0..most {
            let Some(item) = self.ring.next() else { return count };
            // The programs write whole events only.
            if let Ok((event, bytes)) = Event::read_from_prefix(&item) {
                each(event, bytes);
            }
        }
        most
    }

    /// How many events the ring had no room for.
    pub fn lost(&self) -> Result<u64> {
        let cpus = self.capturing.get(&0, 0).map_err(|error| refused("read what was lost", error))?;
        Ok(cpus.iter().map(|cpu| cpu.lost).sum())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Keeper {
    fn spawn(maps: Maps, capture: Capture) -> Result<Self> {
        let (is_done, is_over) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (done, over) = (Arc::clone(&is_done), Arc::clone(&is_over));
        let keep = move || {
            while !done.load(Ordering::Relaxed) {
                // From the pin each time: an upgrade may have put another map in its place.
                let kept = maps.capture_map().and_then(|mut control| {
                    let found = get_slot(&control, names::CAPTURE, 0)?;
                    let is_ours = found.pid == capture.pid || found.pid == 0;
                    if is_ours { renew(&mut control, capture).map(|()| true) } else { Ok(false) }
                });
                if !matches!(kept, Ok(true)) {
                    over.store(true, Ordering::Relaxed);
                    return;
                }
                thread::park_timeout(RENEWAL);
            }
        };
        let thread = thread::Builder::new().name("capture".to_owned()).spawn(keep).doing(|| "start a thread")?;
        Ok(Self { thread, is_done, is_over })
    }

    /// Ends it; whether it was over already.
    fn end(self) -> bool {
        self.is_done.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        // It cannot panic; if it did, the entry is not renewed any more.
        let _joined = self.thread.join();
        self.is_over.load(Ordering::Relaxed)
    }
}

impl Maps {
    fn capture_map(&self) -> Result<Array<MapData, Capture>> {
        self.open(names::CAPTURE, Map::Array)
    }

    fn rings(&self) -> Result<HashOfMaps<MapData, u32, RingBuf<MapData>>> {
        self.open(names::RINGS, Map::HashOfMaps)
    }

    fn capturing(&self) -> Result<PerCpuArray<MapData, Capturing>> {
        self.open(names::CAPTURING, Map::PerCpuArray)
    }

    fn reset_capturing(&self) -> Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(what, error)| KernelError::new(format!("read {what}"), error))?;
        let zeros = PerCpuValues::try_from(vec![Capturing::default(); cpus])
            .map_err(|error| KernelError::new("reset the numbers of a capture", error))?;
        let reset = self.capturing()?.set(0, zeros, 0);
        reset.map_err(|error| refused("reset the numbers of a capture", error))
    }
}

/// Makes a ring of so many bytes: a power of two, and a page at least.
pub fn new_ring(bytes: u32) -> Result<RingBuf<MapData>> {
    let map = aya_obj::Map::new_from_params(BPF_MAP_TYPE_RINGBUF as u32, 0, 0, bytes, 0);
    let made = MapData::create(map, "nsnet_capture", None).and_then(|data| RingBuf::try_from(Map::RingBuf(data)));
    made.map_err(|error| refused(format!("make a ring of {bytes} bytes"), error))
}

/// Has the dataplane go on for a while.
fn renew(control: &mut Array<MapData, Capture>, capture: Capture) -> Result<()> {
    let until = monotonic()? + CAPTURE_LEASE_NS;
    set_slot(control, names::CAPTURE, 0, Capture { until, ..capture })
}

/// Until when the dataplane of this host tells of frames, on the clock of [`monotonic`]; 0 when it does not.
pub fn lease(host: &NetNs) -> Result<u64> {
    let maps = Maps::of(&Dataplane::at(Path::new(BPFFS), &format!("{:x}", host.cookie()?)));
    Ok(get_slot(&maps.capture_map()?, names::CAPTURE, 0)?.until)
}

/// Whether a process is there. It may be one that we may not send a signal to.
fn is_running(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH))
}
