//! How an agent lives and dies, and that nothing depends on it.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use nsnet::kernel::capabilities::NEEDED;
use nsnet::kernel::netlink::Netlink;
use nsnet::kernel::store::RUN;
use nsnet::lab::{TcpServer, UdpEcho, UdpOutcome, tcp, udp};

use super::agent_bed::{Agent, PATIENCE, ask, status_line};
use super::bed::{Bed, Scratch, V4, until};
use super::outside_bed::{Outside, wan};
use super::races::start;
use super::world::World;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn there_is_one_for_a_host() -> Result<()> {
    let bed = Bed::new(V4, &["red"])?;
    let before = World::of(&bed.lab)?;
    let mut first = Agent::start(&bed.lab, "")?;
    let file = fs::metadata(&first.socket)?;
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);

    let second = bed.lab.try_nsnet("agent")?;
    let complaint = super::world::complaint(&second)?;
    assert_eq!(second.status.code(), Some(1));
    let pid = format!("(process {})", first.pid());
    assert!(complaint.contains("this host has one already") && complaint.contains(&pid), "{complaint}");
    assert!(first.health()?.0, "the first one is not disturbed");

    // Killed, it leaves its socket, and the next one takes its place.
    first.end_by(Signal::SIGKILL)?;
    assert!(first.socket.exists());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut next = Agent::start(&bed.lab, "")?;
        assert!(next.health()?.0);
        assert_eq!(next.end_by(signal)?.code(), Some(0));
        assert!(!next.socket.exists());
    }
    assert_eq!(World::of(&bed.lab)?, before, "nothing is left of any of them");

    // What is left by one that was killed goes with the rest.
    let mut last = Agent::start(&bed.lab, "")?;
    last.end_by(Signal::SIGKILL)?;
    assert!(last.socket.exists());
    bed.lab.nsnet("down")?;
    assert!(!last.socket.exists());
    Ok(())
}

#[test]
fn it_answers_on_loopback_too_if_asked() -> Result<()> {
    let bed = Bed::new(V4, &["red"])?;
    let agent = Agent::start(&bed.lab, "--listen 127.0.0.1:0")?;
    let address = agent.listen.context("no address")?;
    let get = |request: &str| bed.lab.within("host", || ask(TcpStream::connect(address)?, request))?;
    assert_eq!(get("GET /healthz HTTP/1.0")?.0, 200);
    assert!(get("GET /metrics HTTP/1.0")?.1.ends_with("# EOF\n"));
    assert_eq!(get("HEAD /metrics HTTP/1.0")?, (200, String::new()));
    assert_eq!(get("GET / HTTP/1.0")?.0, 404);
    assert_eq!(get("POST /metrics HTTP/1.0")?.0, 405);
    // The host's loopback, and nobody else's.
    assert!(bed.at("red").run(|| Ok(TcpStream::connect(address).is_err()))?);

    // Whoever says nothing keeps nobody else waiting, and is sent away.
    let idle: Vec<TcpStream> =
        bed.lab.within("host", || (0..32).map(|_| TcpStream::connect(address)).collect::<Result<_, _>>())??;
    assert_eq!(agent.get("/healthz")?.0, 200);
    assert_eq!(get("GET /healthz HTTP/1.0")?.0, 200);
    drop(idle);
    for refused in ["0.0.0.0:9119", "192.168.1.1:9119", "[::]:9119", "9119"] {
        let output = bed.lab.try_nsnet(&format!("agent --listen {refused}"))?;
        let complaint = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{complaint}");
        assert!(complaint.contains(refused), "{complaint}");
    }
    // An address that is taken is named, and the socket not left behind.
    drop(agent);
    let _taken = bed.lab.within("host", || std::net::TcpListener::bind(address))??;
    let output = bed.lab.try_nsnet(&format!("agent --listen {address}"))?;
    let complaint = super::world::complaint(&output)?;
    assert!(complaint.contains(&address.to_string()) && complaint.contains("in use"), "{complaint}");
    Agent::start(&bed.lab, "").map(drop)
}

/// All threads have the capabilities that docs/agent.md names, and cannot get others.
#[test]
fn it_keeps_few_capabilities() -> Result<()> {
    let bed = Bed::new(V4, &["red"])?;
    let agent = Agent::start(&bed.lab, "")?;
    // Answering starts a thread, too.
    agent.figures()?;
    let kept = NEEDED.iter().chain(&nsnet::agent::USEFUL);
    let kept = kept.fold(0, |kept, (capability, _)| kept | capability.bitmask());
    let threads: Vec<_> = fs::read_dir(format!("/proc/{}/task", agent.pid()))?.collect::<Result<_, _>>()?;
    assert!(threads.len() >= 2, "{threads:?}");
    for thread in threads {
        let status = thread.path().join("status");
        let set = |name| -> Result<u64> { Ok(u64::from_str_radix(&status_line(&status, name)?, 16)?) };
        for name in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(set(name)? & !kept, 0, "{name} of {status:?}");
        }
        assert_eq!((set("CapInh")?, set("CapAmb")?), (0, 0), "{status:?}");
        assert_eq!(status_line(&status, "NoNewPrivs")?, "1");
        let needed = NEEDED.iter().fold(0, |needed, (capability, _)| needed | capability.bitmask());
        assert_eq!(set("CapEff")? & needed, needed);
    }
    // And with these it can do its work.
    let red = bed.at("red");
    let netlink = Netlink::inside(&red.ns)?;
    netlink.delete_link(netlink.existing_link(&red.ifname)?.index)?;
    agent.wait_for_word("repaired attachment")?;
    agent.wait_for_health()?;
    assert!(bed.at("host").reaches(red.v4.into())?);
    Ok(())
}

/// F3: its death is not noticed, by a datagram at a time or by a connection.
#[test]
fn traffic_does_not_notice_its_death() -> Result<()> {
    let bed = Outside::new()?;
    let mut agent = Agent::start(&bed.lab, "--interval 1")?;
    let echo = bed.at("wan").run(|| UdpEcho::start(SocketAddr::new(wan(false), 0)))?;
    let server = bed.at("wan").run(|| TcpServer::start(SocketAddr::new(wan(false), 0)))?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let talk = scope.spawn(|| {
            let mut total = UdpOutcome::default();
            while !is_over.load(Ordering::Relaxed) {
                // Each is a new flow.
                let outcome = bed.at("c1").run(|| udp::exchange(echo.addr(), 64, 20, 2 * SECOND))?;
                total.sent += outcome.sent;
                total.echoed += outcome.echoed;
                // And takes a port of its namespace's quota.
                thread::sleep(SECOND / 200);
            }
            anyhow::Ok(total)
        });
        let stream = scope.spawn(|| bed.at("c2").run(|| tcp::transfer(server.addr(), 256 << 20)));
        thread::sleep(SECOND);
        agent.end_by(Signal::SIGKILL)?;
        thread::sleep(SECOND);
        is_over.store(true, Ordering::Relaxed);
        let total = talk.join().expect("no panic")?;
        assert!(total.sent > 100 && total.echoed == total.sent, "{total}");
        stream.join().expect("no panic")?;
        Ok(())
    })?;
    bed.check_no_drift()
}

/// Verbs and the agent do not hold each other up, whatever the agent finds to do.
#[test]
fn it_never_waits_for_a_verb() -> Result<()> {
    let bed = Bed::new(V4, &["red"])?;
    bed.lab.nsnet("publish add @red 8080:80")?;
    let agent = Agent::start(&bed.lab, "--interval 1")?;
    let red = bed.at("red");
    let netlink = Netlink::inside(&red.ns)?;
    let link = netlink.existing_link(&red.ifname)?.index;
    let address = "192.168.15.1/24".parse()?;
    let break_it = || netlink.remove_address(link, address);
    let key = bed.lab.ns("host")?.cookie()?;
    let lock = File::options().write(true).open(Path::new(RUN).join(format!("{key:x}.lock")))?;
    let held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    assert!(break_it()?);
    let began = Instant::now();
    while began.elapsed() < 2 * SECOND {
        let asked = Instant::now();
        agent.get("/healthz")?;
        ensure!(asked.elapsed() < PATIENCE / 2, "health took {:?}", asked.elapsed());
    }
    assert_eq!(netlink.addresses(link)?.len(), 0, "it repairs while another verb is under way");
    assert!(agent.figures()?.value("nsnet_agent_busy_total", &[])? > 0.0);
    drop(held);
    agent.wait_for_health()?;

    // Verbs at the same time as repairs: all do what they are to do.
    let names: Vec<String> = (0..12).map(|number| format!("n{number}")).collect();
    let verbs = |verb: &str| -> Result<()> {
        let lines = names.iter().map(|name| format!("{verb} @{name}"));
        let started = lines.map(|line| start(&bed.lab, &line)).collect::<Result<Vec<_>>>()?;
        break_it()?;
        for child in started {
            let output = child.wait_with_output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    };
    for verb in ["ns add", "attach v-net-0", "detach v-net-0", "attach v-net-0"] {
        verbs(verb)?;
    }
    until(3 * PATIENCE, || Ok(bed.check_no_drift().is_ok())).with_context(|| agent.said())?;
    agent.wait_for_health()?;
    assert_eq!(bed.lab.json("network show v-net-0")?["ports"].as_array().map(Vec::len), Some(13));
    Ok(())
}

/// sd_notify(3): what systemd waits for, and by what it knows that the agent lives.
#[test]
fn it_tells_systemd() -> Result<()> {
    const WATCHDOG: Duration = Duration::from_secs(4);
    let bed = Bed::new(V4, &["red"])?;
    let path = Scratch(std::env::temp_dir().join(format!("nsnet-notify-test-{}", std::process::id())));
    let systemd = UnixDatagram::bind(&path.0)?;
    systemd.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 4096];
    let mut hear = || -> Result<String> {
        let length = systemd.recv(&mut buffer).context("nothing was told")?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    };
    let agent = Agent::run(&bed.lab, "", |command| {
        command.env("NOTIFY_SOCKET", &path.0).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    });
    let mut agent = agent?;
    let (mut heard, mut last) = (Vec::new(), Instant::now());
    let began = Instant::now();
    while began.elapsed() < 2 * WATCHDOG + SECOND {
        let message = hear()?;
        if message.contains("WATCHDOG=1") {
            ensure!(last.elapsed() < WATCHDOG, "systemd would have killed it: {:?}", last.elapsed());
            last = Instant::now();
        }
        heard.push(message);
    }
    let all = heard.concat();
    assert_eq!(all.matches("READY=1").count(), 1, "{heard:?}");
    assert!(all.contains("STATUS=all is as it should be"), "{heard:?}");
    assert!((3..=8).contains(&all.matches("WATCHDOG=1").count()), "{heard:?}");

    // Without the reason being ours, the status says what is wrong.
    let red = bed.at("red");
    agent.wait_for_health()?;
    nsnet::kernel::named::delete(red.ns.name())?;
    while !hear()?.contains(red.ns.name()) {}
    assert_eq!(agent.end_by(Signal::SIGTERM)?.code(), Some(0));
    while !hear()?.contains("STOPPING=1") {}
    Ok(())
}
