//! An S3 server of another project (s3s-fs), in this process, on a port of its own: what we say to it goes over the wire.

use std::path::Path;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::net::TcpListener;

/// Who may use it.
pub(crate) const ACCESS_KEY: &str = "ringway-test";
pub(crate) const SECRET_KEY: &str = "a secret that only the test knows";

/// A server; dropped, it closes its port.
pub(crate) struct S3Server {
    /// As in a backend's URL.
    pub(crate) endpoint: String,
    runtime: Option<tokio::runtime::Runtime>,
}

impl S3Server {
    /// Serves a folder, in which each folder is a bucket.
    pub(crate) fn start(folder: &Path) -> S3Server {
        Self::start_at(folder, 0)
    }

    /// On this port; 0 picks one.
    pub(crate) fn start_at(folder: &Path, port: u16) -> S3Server {
        let mut builder = S3ServiceBuilder::new(FileSystem::new(folder).expect("the folder is there"));
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let service = builder.build();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime can be made");
        // Bound without waiting: tests call this from a runtime of their own.
        let bound = std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        bound.set_nonblocking(true).expect("a socket can be made not to wait");
        let endpoint = format!("http://{}", bound.local_addr().expect("it is bound"));
        runtime.spawn(async move {
            let listener = TcpListener::from_std(bound).expect("a runtime takes sockets");
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let http = Builder::new(TokioExecutor::new());
                    // A client that goes away is none of ours to complain about.
                    let _ = http.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        S3Server { endpoint, runtime: Some(runtime) }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
