//! Figures and health, by HTTP: at a socket in the file system that only root can reach, and on loopback if asked for.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | 200, figures for Prometheus |
//! | `/healthz` | 200 when all is as it should be, else 503; JSON with the reasons |

use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::rt::{Read, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task;
use tokio::time::Instant;

use super::figures::{self, CONTENT_TYPE as FIGURES};
use super::metrics::{self, Source};
use super::report::{Report, Task};
use crate::kernel::store::{RUN, Store};

/// Connections at a time, to each socket; others wait.
const CONNECTIONS: usize = 16;
/// How long a request may take to arrive.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a connection may live. Whoever asks often connects again.
const CONNECTION: Duration = Duration::from_secs(60);

/// The sockets, open. There is one agent for a host: whoever has the socket in the file system is it.
#[derive(Debug)]
pub(super) struct Door {
    path: PathBuf,
    unix: UnixListener,
    tcp: Option<TcpListener>,
}

impl Door {
    /// Opens the sockets of the agent of `host`. Fails when there is one already.
    pub(super) fn open(host: &str, listen: Option<SocketAddr>) -> Result<Self> {
        // Against another agent that begins at this moment.
        let _held = Store::locked(host, |_waits| ())?;
        let path = path_of(host);
        if let Some(other) = clear_away(host)? {
            let owner = getsockopt(&other, sockopt::PeerCredentials);
            let owner = owner.map_or_else(|_| "unknown".to_owned(), |owner| owner.pid().to_string());
            bail!("cannot start the agent: this host has one already (process {owner}); stop that first");
        }
        let tcp =
            listen.map(|address| TcpListener::bind(address).with_context(|| format!("cannot listen at {address}")));
        let tcp = tcp.transpose()?;
        // From its first moment on; the directory is root's alone, too.
        let before = umask(Mode::from_bits_truncate(0o177));
        let unix = UnixListener::bind(&path);
        umask(before);
        let unix = unix.with_context(|| format!("cannot listen at {}", path.display()))?;
        let door = Self { path, unix, tcp };
        fs::set_permissions(&door.path, fs::Permissions::from_mode(0o600))
            .context("cannot close the socket to others")?;
        door.unix.set_nonblocking(true).context("cannot wait at the socket")?;
        door.tcp.iter().try_for_each(|tcp| tcp.set_nonblocking(true)).context("cannot wait at the address")?;
        Ok(door)
    }

    /// The socket in the file system.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The address on loopback.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok())
    }

    /// Answers until the runtime ends. To be called in a [`task::LocalSet`].
    pub(super) fn serve(&self, answers: &Rc<Answers>) -> Result<()> {
        let unix = tokio::net::UnixListener::from_std(self.unix.try_clone()?).context("cannot wait at the socket")?;
        task::spawn_local(serve_unix(unix, Rc::clone(answers)));
        if let Some(tcp) = &self.tcp {
            let tcp = tokio::net::TcpListener::from_std(tcp.try_clone()?).context("cannot wait at the address")?;
            task::spawn_local(serve_tcp(tcp, Rc::clone(answers)));
        }
        Ok(())
    }
}

fn path_of(host: &str) -> PathBuf {
    Path::new(RUN).join(format!("{host}.agent.sock"))
}

/// Removes what an agent of `host` has left behind that was killed. One that runs is left, and answers.
pub(super) fn clear_away(host: &str) -> Result<Option<UnixStream>> {
    let path = path_of(host);
    match UnixStream::connect(&path) {
        Ok(running) => Ok(Some(running)),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => bail!("cannot find out whether an agent runs at {}: {error}", path.display()),
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // What stays is replaced by the next agent.
        let _left = fs::remove_file(&self.path);
    }
}

/// What is needed to answer.
#[derive(Debug)]
pub(super) struct Answers {
    report: Arc<Mutex<Report>>,
    source: Source,
    /// One at a time: what others would read meanwhile is the same.
    scrape: tokio::sync::Mutex<()>,
}

/// The report, whoever has it now.
pub(super) fn locked(report: &Mutex<Report>) -> MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Answers {
    pub(super) fn new(report: Arc<Mutex<Report>>, source: Source) -> Self {
        Self { report, source, scrape: tokio::sync::Mutex::new(()) }
    }

    async fn answer(&self, method: &Method, path: &str) -> Response<String> {
        let is_read = [Method::GET, Method::HEAD].contains(method);
        match path {
            "/metrics" | "/healthz" if !is_read => {
                let answer = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered\n");
                with(answer, ALLOW, "GET, HEAD")
            }
            "/metrics" => self.metrics().await,
            "/healthz" => {
                let (is_well, value) = locked(&self.report).health(Instant::now());
                let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
                with(plain(status, &format!("{value:#}\n")), CONTENT_TYPE, "application/json")
            }
            _ => plain(StatusCode::NOT_FOUND, "there are /metrics and /healthz\n"),
        }
    }

    /// Figures are read on another thread: a large host has many.
    async fn metrics(&self) -> Response<String> {
        let _alone = self.scrape.lock().await;
        let (source, began) = (self.source.clone(), Instant::now());
        let families = match task::spawn_blocking(move || source.read()).await {
            Ok(families) => families,
            Err(panic) => Err(anyhow::anyhow!("reading figures: {panic}")),
        };
        let mut report = locked(&self.report);
        let error = families.as_ref().err().map(|error| format!("{error:#}"));
        report.note(Task::Scrape, began.elapsed(), error);
        let families = metrics::of_agent(&report, Instant::now()).and(families.unwrap_or_default());
        drop(report);
        with(plain(StatusCode::OK, &figures::encode(families)), CONTENT_TYPE, FIGURES)
    }
}

fn plain(status: StatusCode, text: &str) -> Response<String> {
    let mut answer = Response::new(text.to_owned());
    *answer.status_mut() = status;
    with(answer, CONTENT_TYPE, "text/plain; charset=utf-8")
}

fn with(mut answer: Response<String>, header: HeaderName, value: &'static str) -> Response<String> {
    answer.headers_mut().insert(header, HeaderValue::from_static(value));
    answer
}

async fn serve_unix(listener: tokio::net::UnixListener, answers: Rc<Answers>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            pause().await;
            continue;
        };
        // Nobody else gets here by the file's mode; but a descriptor may be handed on.
        let is_root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
        if is_root {
            converse(stream, &answers, place);
        }
    }
}

async fn serve_tcp(listener: tokio::net::TcpListener, answers: Rc<Answers>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => converse(stream, &answers, place),
            Err(_no_descriptor_or_gone) => pause().await,
        }
    }
}

/// Accepting fails while there are no descriptors: trying again at once would keep the processor busy.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Answers what comes by one connection.
fn converse<S>(stream: S, answers: &Rc<Answers>, place: OwnedSemaphorePermit)
where
    TokioIo<S>: Read + Write + Unpin + 'static,
{
    let answers = Rc::clone(answers);
    task::spawn_local(async move {
        let answers = &answers;
        let service = service_fn(|request: Request<Incoming>| async move {
            Ok::<_, Infallible>(answers.answer(request.method(), request.uri().path()).await)
        });
        let mut server = http1::Builder::new();
        server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(1 << 14);
        // A connection that fails is the other side's affair.
        let _ended = tokio::time::timeout(CONNECTION, server.serve_connection(TokioIo::new(stream), service)).await;
        drop(place);
    });
}
