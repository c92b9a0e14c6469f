//! The call to coild.

use std::{
    io,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use coil_api::{
    cni::{ErrorDocument, code},
    rpc::{cni_client::CniClient, status},
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime, time};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{alone, environment::Command, error, input::Request};

/// How long coild may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long STATUS waits for a coild that is being restarted, so that an upgrade does not make a node look
/// broken.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two looks for it.
const PAUSE: Duration = Duration::from_millis(50);

/// Asks coild, and returns the result of ADD.
pub(crate) fn coild(command: Command, request: &Request) -> Result<Option<Vec<u8>>, ErrorDocument> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| error(code::IO_FAILURE, format!("cannot start: {e}")))?;
    // Inside the runtime: a timer is made in its context.
    let answer = runtime.block_on(async { time::timeout(LIMIT, ask(command, request)).await });
    answer.unwrap_or_else(|_| {
        let msg = format!("coild on {} did not answer within {} s", request.socket, LIMIT.as_secs());
        Err(error(unavailable(command), msg))
    })
}

/// The code for a coild that gives no answer.
fn unavailable(command: Command) -> u32 {
    if command == Command::Status { code::NOT_AVAILABLE } else { code::TRY_AGAIN_LATER }
}

/// Why there is no answer.
enum Failed {
    /// Nobody listens, or who did has ended in between: a coild that is restarted.
    Absent(ErrorDocument),
    /// Anything else.
    Refused(ErrorDocument),
}

async fn ask(command: Command, request: &Request) -> Result<Option<Vec<u8>>, ErrorDocument> {
    let started = Instant::now();
    loop {
        match ask_once(command, request).await {
            Err(Failed::Absent(_)) if command == Command::Status && started.elapsed() < PATIENCE => {
                time::sleep(PAUSE).await;
            }
            Err(Failed::Absent(e) | Failed::Refused(e)) => return Err(e),
            Ok(answer) => return Ok(answer),
        }
    }
}

async fn ask_once(command: Command, request: &Request) -> Result<Option<Vec<u8>>, Failed> {
    let stream = match UnixStream::connect(&request.socket).await {
        Ok(stream) => stream,
        // Nobody holds the socket, so nobody works on this attachment: a coild that ends holds it until its last
        // request is done. And what a coild that starts later knows of it is what the kernel has.
        Err(e) if command == Command::Del && is_absent(&e) => {
            return alone::del(request).await.map(|()| None).map_err(Failed::Refused);
        }
        Err(e) => {
            let msg = format!("cannot reach coild on {}: {e}; is it running?", request.socket);
            let document = error(unavailable(command), msg);
            return Err(if is_absent(&e) { Failed::Absent(document) } else { Failed::Refused(document) });
        }
    };
    let channel = channel(stream).await.map_err(|e| {
        let msg = format!("cannot speak to coild on {}: {e}", request.socket);
        Failed::Absent(error(unavailable(command), msg))
    })?;
    let mut client = CniClient::new(channel);
    let args = request.args.clone();
    let answer = match command {
        Command::Add => client.add(args).await.map(|response| Some(response.into_inner().result)),
        Command::Del => client.del(args).await.map(|_| None),
        Command::Check => client.check(args).await.map(|_| None),
        Command::Gc => client.gc(args).await.map(|_| None),
        Command::Status => match client.status(args).await {
            // An older coild, which serves ADD.
            Err(status) if status.code() == Code::Unimplemented => Ok(None),
            answer => answer.map(|_| None),
        },
        // Answered without coild.
        Command::Version => Ok(None),
    };
    answer.map_err(|status| failure(command, &status))
}

/// Whether no process serves the socket.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// HTTP/2 over a stream that is there already.
async fn channel(stream: UnixStream) -> Result<Channel, tonic::transport::Error> {
    let once = Mutex::new(Some(stream));
    let connector = tower::service_fn(move |_| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionReset)) }
    });
    // The authority is not used: the connector has the stream.
    Endpoint::from_static("http://coild").connect_with_connector(connector).await
}

fn failure(command: Command, status: &Status) -> Failed {
    if let Some(e) = status::error_of(status) {
        let code = u32::try_from(e.code).unwrap_or(code::INTERNAL);
        return Failed::Refused(ErrorDocument { details: e.details, ..error(code, e.msg) });
    }
    match status.code() {
        Code::Unimplemented => {
            let msg = format!("coild does not know {}: it is older than the plugin", command.name());
            Failed::Refused(error(code::INTERNAL, msg))
        }
        // coild ended, and how far it came is not known.
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => no_answer(command, status),
        // A connection that breaks before the first answer has no code of its own.
        Code::Unknown if std::error::Error::source(status).is_some() => no_answer(command, status),
        code => {
            let msg = format!("coild failed ({code:?}): {}", status.message());
            Failed::Refused(error(code::INTERNAL, msg))
        }
    }
}

fn no_answer(command: Command, status: &Status) -> Failed {
    let msg = format!("coild gave no answer: {}", status.message());
    Failed::Absent(error(unavailable(command), msg))
}
