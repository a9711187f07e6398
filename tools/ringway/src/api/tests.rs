//! Our client against our server over a real socket, with a node that keeps its volumes in a list.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;

use ringway_core::control::{TargetInfo, VolumeInfo};
use ringway_core::ids::VolumeId;
use ringway_core::volume::VolumeRecord;

use super::*;
use crate::client::Client;

/// Answers from a list; what it does not know it drops, as a node does that is stopping.
#[derive(Default)]
struct ListNode {
    volumes: Mutex<Vec<VolumeInfo>>,
    seen: Mutex<Vec<ControlRequest>>,
}

fn info(create: &VolumeCreate) -> VolumeInfo {
    let record = VolumeRecord {
        id: VolumeId(1),
        name: create.name.clone(),
        uuid: uuid::Uuid::nil(),
        size: create.size,
        lba_bytes: create.lba_bytes,
        shards: Vec::new(),
        created_unix_s: 0,
        exclusive: create.exclusive,
        allowed_hosts: create.allowed_hosts.clone(),
        cuts: Vec::new(),
        dead: Vec::new(),
        view: None,
        parent: None,
    };
    VolumeInfo::of_record(&record, format!("nqn.2026-11.io.ringway:{}", create.name))
}

impl ControlPort for ListNode {
    fn control(&self, call: ControlCall) {
        self.seen.lock().unwrap().push(call.request.clone());
        let mut volumes = self.volumes.lock().unwrap();
        let answer = match &call.request {
            ControlRequest::VolumeCreate(create) if volumes.iter().any(|v| v.name == create.name) => {
                Err(ControlError::volume_exists(&create.name))
            }
            ControlRequest::VolumeCreate(create) => {
                volumes.push(info(create));
                Ok(ControlAnswer::Volume(info(create)))
            }
            ControlRequest::VolumeList => Ok(ControlAnswer::Volumes(volumes.clone())),
            ControlRequest::VolumeShow { name } => volumes
                .iter()
                .find(|volume| volume.name == *name)
                .map(|volume| ControlAnswer::Volume(volume.clone()))
                .ok_or_else(|| ControlError::no_such_volume(name)),
            ControlRequest::VolumeRemove { name, .. } => {
                volumes.retain(|volume| volume.name != *name);
                Ok(ControlAnswer::Done)
            }
            ControlRequest::TargetShow => Ok(ControlAnswer::Target(TargetInfo {
                version: "0".into(),
                pid: 1,
                listeners: Vec::new(),
                rdma_listeners: Vec::new(),
                cores: vec![0],
                connections: 0,
                insecure: false,
            })),
            _ => return drop(call),
        };
        call.answer(answer);
    }
}

struct Server {
    _dir: tempfile::TempDir,
    path: PathBuf,
    node: Arc<ListNode>,
}

impl Server {
    fn client(&self) -> Client {
        Client::new(self.path.clone())
    }

    fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

fn serve() -> Server {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let node = Arc::new(ListNode::default());
    let metrics = Metrics::new(1, 1);
    let routes = routes(Node { port: Arc::clone(&node) as Arc<dyn ControlPort>, metrics });
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        listener.set_nonblocking(true).unwrap();
        runtime.block_on(async {
            axum::serve(tokio::net::UnixListener::from_std(listener).unwrap(), routes).await.unwrap();
        });
    });
    Server { _dir: dir, path, node }
}

fn create(name: &str) -> VolumeCreate {
    VolumeCreate {
        name: name.into(),
        size: 1 << 20,
        lba_bytes: 512,
        shards: None,
        exclusive: false,
        allowed_hosts: Vec::new(),
    }
}

#[test]
fn a_name_with_slashes_survives_the_way_to_the_node_and_back() {
    let server = serve();
    let client = server.client();
    client.volume_create(&create("a/b.c")).unwrap();
    assert_eq!(client.volume("a/b.c").unwrap().name, "a/b.c");
    assert_eq!(client.volumes().unwrap().len(), 1);
    client.volume_remove("a/b.c", true).unwrap();
    let seen = server.node.seen.lock().unwrap();
    assert_eq!(*seen.last().unwrap(), ControlRequest::VolumeRemove { name: "a/b.c".into(), force: true });
}

#[test]
fn failures_keep_their_kind_and_message_on_the_way() {
    let server = serve();
    let client = server.client();
    client.volume_create(&create("v")).unwrap();
    assert_eq!(client.volume_create(&create("v")).unwrap_err().exit_code(), 4);
    let missing = client.volume("w").unwrap_err();
    assert!(missing.exit_code() == 3 && missing.message.contains("volume list"), "{missing}");
    let invalid = client.volume_create(&VolumeCreate { size: 5, ..create("x") }).unwrap_err();
    assert_eq!(invalid.exit_code(), 2);
    assert_eq!(server.node.volumes.lock().unwrap().len(), 1);
}

#[test]
fn a_node_that_drops_a_call_is_reported_as_stopping() {
    let failure = serve().client().volume_resize("v", 5).unwrap_err();
    assert_eq!(failure.exit_code(), 6);
}

#[test]
fn nobody_behind_the_socket_is_reported_with_what_to_do() {
    let failure = Client::new("/no/such/control.sock".into()).target().unwrap_err();
    assert!(failure.exit_code() == 6 && failure.message.contains("ringway serve"), "{failure}");
}

#[test]
fn bodies_paths_and_methods_that_are_wrong_get_an_error_body() {
    let server = serve();
    let post = |body: &str| {
        format!(
            "POST /v1/volumes HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    for (request, status, says) in [
        (post("{"), "400", "EOF"),
        (post(r#"{"name":"a","size":512,"colour":1}"#), "400", "colour"),
        (post(r#"{"name":"a b","size":512}"#), "400", "A-Z a-z"),
        ("GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(), "404", "no such path"),
        ("POST /v1/target HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(), "400", "method"),
        ("DELETE /v1/volumes/a?force=7 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".into(), "400", "force"),
    ] {
        let answer = server.raw(&request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
        assert!(answer.contains(r#"{"error":{"kind":""#) && answer.contains(says), "{request}: {answer}");
    }
    assert!(server.node.seen.lock().unwrap().is_empty());
}

#[test]
fn metrics_are_served_as_text() {
    let answer = serve().raw("GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert!(
        answer.contains("application/openmetrics-text") && answer.contains("ringway_pool_size_bytes 0"),
        "{answer}"
    );
}
