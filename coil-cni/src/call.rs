//! The call to coild.

use std::{error::Error, time::Duration};

use coil_api::{
    cni::{ErrorDocument, code},
    rpc::{cni_client::CniClient, status},
};
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, runtime, time::timeout};
use tonic::{Code, Status, transport::Endpoint};

use crate::{
    error,
    input::{Command, Request},
};

/// How long coild may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Asks coild, and returns the result of ADD.
pub(crate) fn coild(command: Command, request: &Request) -> Result<Option<Vec<u8>>, ErrorDocument> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| error(code::IO_FAILURE, format!("cannot start: {e}")))?;
    // Inside the runtime: a timer is made in its context.
    let answer = runtime.block_on(async { timeout(LIMIT, ask(command, request)).await });
    answer.unwrap_or_else(|_| {
        let msg = format!("coild on {} did not answer within {} s", request.socket, LIMIT.as_secs());
        Err(error(code::TRY_AGAIN_LATER, msg))
    })
}

async fn ask(command: Command, request: &Request) -> Result<Option<Vec<u8>>, ErrorDocument> {
    let path = request.socket.clone();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The authority is not used: the connector knows the socket.
    let channel =
        Endpoint::from_static("http://coild").connect_with_connector(connector).await.map_err(|e| {
            let msg = format!("cannot reach coild on {}: {}; is it running?", request.socket, root_cause(&e));
            error(code::TRY_AGAIN_LATER, msg)
        })?;
    let mut client = CniClient::new(channel);
    let args = request.args.clone();
    let answer = match command {
        Command::Add => client.add(args).await.map(|response| Some(response.into_inner().result)),
        Command::Del => client.del(args).await.map(|_| None),
        Command::Check => client.check(args).await.map(|_| None),
        // Answered without coild.
        Command::Version => Ok(None),
    };
    answer.map_err(|status| document(&status))
}

fn document(status: &Status) -> ErrorDocument {
    if let Some(e) = status::error_of(status) {
        let code = u32::try_from(e.code).unwrap_or(code::INTERNAL);
        return ErrorDocument { details: e.details, ..error(code, e.msg) };
    }
    let code = match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => code::TRY_AGAIN_LATER,
        _ => code::INTERNAL,
    };
    error(code, format!("coild failed ({:?}): {}", status.code(), status.message()))
}

fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
