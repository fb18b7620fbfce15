//! The other end of the control API: what `ps`, `logs`, `down` and the others talk through.
//!
//! Blocking: each call runs a small runtime of its own on the calling thread and starts no other.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use netyard_engine::forward::Forward;
use netyard_sys::process::PidFd;
use netyard_sys::socket_path::SocketPath;
use netyard_sys::wait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime;

use crate::api::{
    Applied, ApplyRequest, Down, ForwardChanged, ForwardRequest, ForwardStatus, InstanceStatus,
    LogsQuery, NetworkStatus, ServiceStatus, Waited, YardStatus,
};
use crate::error::{ErrorKind, YardError};
use crate::file;
use crate::runtime::{Runtime, socket_in};

/// A running yard's control API.
#[derive(Debug, Clone)]
pub struct Client {
    yard: String,
    socket: PathBuf,
}

impl Client {
    /// Finds a running yard: the named one, or that with the control API at a path (there is a `/` in it); else that
    /// of `./yard.toml`, if it runs; else the only one that runs.
    ///
    /// # Errors
    /// It does not run; there are several, or none.
    pub fn find(yard: Option<&str>) -> Result<Self, YardError> {
        Self::find_in(&Runtime::open()?, yard, Path::new(file::FILE_NAME))
    }

    fn find_in(runtime: &Runtime, yard: Option<&str>, here: &Path) -> Result<Self, YardError> {
        let running = runtime.running();
        let known = |name: &str| running.iter().any(|other| other == name);
        if let Some(path) = yard.filter(|name| name.contains('/')) {
            return Ok(Self { yard: path.to_owned(), socket: PathBuf::from(path) });
        }
        if let Some(name) = yard {
            return if known(name) {
                Ok(Self::of(runtime, name))
            } else {
                Err(YardError::new(
                    ErrorKind::Unknown,
                    format!("find the yard {name}"),
                    said(&running),
                )
                .next("see which yards run, or bring it up with `netyard up`"))
            };
        }
        if let Ok(yard) = file::load(here)
            && known(&yard.name)
        {
            return Ok(Self::of(runtime, &yard.name));
        }
        match running.as_slice() {
            [only] => Ok(Self::of(runtime, only)),
            [] => Err(YardError::new(ErrorKind::Unknown, "find the yard", said(&running))
                .next("bring one up with `netyard up`")),
            _ => Err(YardError::new(ErrorKind::Input, "find the yard", said(&running))
                .next("name one with --yard")),
        }
    }

    /// The client of the yard `name`, running or not.
    pub(crate) fn of(runtime: &Runtime, name: &str) -> Self {
        Self { yard: name.to_owned(), socket: socket_in(&runtime.yard(name)) }
    }

    /// The yard's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.yard
    }

    /// Everything about the yard.
    ///
    /// # Errors
    /// The keeper cannot be reached.
    pub fn yard(&self) -> Result<YardStatus, YardError> {
        self.call(Method::GET, "/v1/yard", None::<&()>)
    }

    /// Its instances.
    ///
    /// # Errors
    /// The keeper cannot be reached.
    pub fn instances(&self) -> Result<Vec<InstanceStatus>, YardError> {
        self.call(Method::GET, "/v1/instances", None::<&()>)
    }

    /// Its services.
    ///
    /// # Errors
    /// The keeper cannot be reached.
    pub fn services(&self) -> Result<Vec<ServiceStatus>, YardError> {
        self.call(Method::GET, "/v1/services", None::<&()>)
    }

    /// Its forwards.
    ///
    /// # Errors
    /// The keeper cannot be reached.
    pub fn forwards(&self) -> Result<Vec<ForwardStatus>, YardError> {
        self.call(Method::GET, "/v1/forwards", None::<&()>)
    }

    /// Opens a forward of an instance while everything runs. It stays as long as the instance does.
    ///
    /// # Errors
    /// There is no instance of that name, a host port is taken or not for us, or the forward cannot be.
    pub fn add_forward(&self, forward: &Forward) -> Result<ForwardChanged, YardError> {
        let forward = forward.clone();
        self.call(Method::POST, "/v1/forwards/add", Some(&ForwardRequest { forward }))
    }

    /// Closes a forward of an instance while everything runs.
    ///
    /// # Errors
    /// There is no instance of that name.
    pub fn remove_forward(&self, forward: &Forward) -> Result<ForwardChanged, YardError> {
        let forward = forward.clone();
        self.call(Method::POST, "/v1/forwards/remove", Some(&ForwardRequest { forward }))
    }

    /// Its networks.
    ///
    /// # Errors
    /// The keeper cannot be reached.
    pub fn networks(&self) -> Result<Vec<NetworkStatus>, YardError> {
        self.call(Method::GET, "/v1/networks", None::<&()>)
    }

    /// Starts an instance that does not run.
    ///
    /// # Errors
    /// There is none of that name; its program cannot be started.
    pub fn start(&self, instance: &str) -> Result<InstanceStatus, YardError> {
        self.call(Method::POST, &format!("/v1/instances/{instance}/start"), None::<&()>)
    }

    /// Stops an instance; returns when its program has ended.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn stop(&self, instance: &str) -> Result<InstanceStatus, YardError> {
        self.call(Method::POST, &format!("/v1/instances/{instance}/stop"), None::<&()>)
    }

    /// Stops an instance if it runs, and starts it.
    ///
    /// # Errors
    /// There is none of that name; its program cannot be started.
    pub fn restart(&self, instance: &str) -> Result<InstanceStatus, YardError> {
        self.call(Method::POST, &format!("/v1/instances/{instance}/restart"), None::<&()>)
    }

    /// Writes an instance's log to `out`; when following, until the yard ends or `out` does.
    ///
    /// # Errors
    /// There is no instance of that name; `out` cannot be written (its end is not an error).
    pub fn logs(
        &self,
        instance: &str,
        query: LogsQuery,
        out: &mut dyn Write,
    ) -> Result<(), YardError> {
        let tail = query.tail.map(|lines| format!("&tail={lines}")).unwrap_or_default();
        let path = format!("/v1/instances/{instance}/logs?follow={}{tail}", query.follow);
        block_on(async {
            let mut body = self.send(Method::GET, &path, Bytes::new()).await?.into_body();
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else { break };
                let Ok(data) = frame.into_data() else { continue };
                match out.write_all(&data).and_then(|()| out.flush()) {
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                    written => written.map_err(|error| YardError::io("print the log", &error))?,
                }
            }
            Ok(())
        })
    }

    /// Has the keeper read its yard file again, or another one, and apply what differs.
    ///
    /// # Errors
    /// The file is wrong; a step failed.
    pub fn apply(&self, file: &Path) -> Result<Applied, YardError> {
        let file = file.to_owned();
        self.call(Method::POST, "/v1/apply", Some(&ApplyRequest { file }))
    }

    /// Stops the yard; returns when everything of it is gone.
    ///
    /// # Errors
    /// The keeper cannot be reached.
    pub fn down(&self) -> Result<(), YardError> {
        let down: Down = self.call(Method::POST, "/v1/down", None::<&()>)?;
        match PidFd::open(down.keeper_pid) {
            Ok(keeper) => loop {
                let gone = wait::readable([keeper.as_fd()], None)
                    .map_err(|error| YardError::io("wait for the keeper's end", &error))?;
                if gone == [true] {
                    return Ok(());
                }
            },
            // Gone already.
            Err(_) => Ok(()),
        }
    }

    /// Waits until everything is well, something cannot become so, or `within` is over.
    ///
    /// # Errors
    /// The keeper cannot be reached.
    pub fn wait(&self, within: Duration) -> Result<Waited, YardError> {
        let path = format!("/v1/wait?timeout_ms={}", within.as_millis());
        self.call(Method::GET, &path, None::<&()>)
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, YardError> {
        let body =
            body.map(serde_json::to_vec).transpose().map_err(|error| self.nonsense(&error))?;
        block_on(async {
            let answer = self.send(method, path, body.unwrap_or_default().into()).await?;
            let body = answer.into_body().collect().await.map_err(|error| self.gone(&error))?;
            serde_json::from_slice(&body.to_bytes()).map_err(|error| self.nonsense(&error))
        })
    }

    /// Sends one request; an answer that is not a success is an error.
    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, YardError> {
        let socket = SocketPath::new(&self.socket).map_err(|error| self.gone(&error))?;
        let stream = UnixStream::connect(socket).await.map_err(|error| self.gone(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.gone(&error))?;
        // Ends with the sender and the body; their errors are the ones to tell.
        tokio::spawn(async move { connection.await.ok() });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "keeper")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| {
                YardError::new(ErrorKind::Input, format!("ask for {path}"), error.to_string())
            })?;
        let answer = sender.send_request(request).await.map_err(|error| self.gone(&error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let body = answer.into_body().collect().await.map_err(|error| self.gone(&error))?;
        Err(serde_json::from_slice(&body.to_bytes()).unwrap_or_else(|error| self.nonsense(&error)))
    }

    fn gone(&self, error: &dyn std::error::Error) -> YardError {
        let wanted = format!("talk to the keeper of {}", self.yard);
        YardError::new(ErrorKind::Peer, wanted, error.to_string())
    }

    fn nonsense(&self, error: &serde_json::Error) -> YardError {
        let wanted = format!("understand the keeper of {}", self.yard);
        YardError::new(ErrorKind::Peer, wanted, error.to_string())
            .next("it may be of another version: stop it and bring the yard up again")
    }
}

/// Which yards run, for people.
fn said(running: &[String]) -> String {
    match running {
        [] => "no yard runs".to_owned(),
        [one] => format!("only {one} runs"),
        _ => format!("these run: {}", running.join(", ")),
    }
}

fn block_on<T>(work: impl Future<Output = Result<T, YardError>>) -> Result<T, YardError> {
    runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|error| YardError::io("start a runtime", &error))?
        .block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_running_yard_is_meant_when_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = Runtime::at(folder.path().join("netyard")).unwrap();
        let none = Path::new("/no/such/yard.toml");
        let find = |name| Client::find_in(&runtime, name, none);

        assert_eq!(find(None).unwrap_err().kind, ErrorKind::Unknown);
        let _hello = runtime.claim("hello").unwrap().unwrap();
        assert_eq!(find(None).unwrap().name(), "hello");
        assert_eq!(find(Some("hello")).unwrap().name(), "hello");
        assert_eq!(find(Some("other")).unwrap_err().kind, ErrorKind::Unknown);
        assert_eq!(find(Some("./hello.sock")).unwrap().socket, Path::new("./hello.sock"));
        let _other = runtime.claim("other").unwrap().unwrap();
        let error = find(None).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Input);
        assert!(error.found.contains("hello, other"), "{error}");
    }

    #[test]
    fn a_keeper_that_is_gone_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = Runtime::at(folder.path().join("netyard")).unwrap();
        let error = Client::of(&runtime, "hello").yard().unwrap_err();
        assert_eq!(error.kind, ErrorKind::Peer);
        assert!(error.to_string().contains("keeper of hello"), "{error}");
    }
}
