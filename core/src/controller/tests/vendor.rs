//! Control requests that come as admin commands.

use std::sync::Mutex;

use zerocopy::FromBytes;

use super::*;
use crate::controller::vendor::{ControlFront, FrontAnswer, FrontReply, HEAD_BYTES, RECEIVE, SEND, TICKETS_MAX};
use crate::wire::command::admin;
use crate::wire::log_page::{CommandEffects, page};
use crate::wire::sgl::DataPlace;

/// Answers when it is told to.
#[derive(Default)]
struct Later(Mutex<Vec<(String, Vec<u8>, FrontAnswer)>>);

impl ControlFront for Later {
    fn request(&self, host: &str, request: Vec<u8>, answer: FrontAnswer) {
        self.0.lock().unwrap().push((host.to_owned(), request, answer));
    }
}

impl Later {
    fn answer(&self, status: u16, body: &[u8]) -> (String, Vec<u8>) {
        let (host, request, answer) = self.0.lock().unwrap().remove(0);
        answer(FrontReply { status, body: body.to_vec() });
        (host, request)
    }
}

fn set_up(hosts: &[&str]) -> (Arc<Later>, AdminQueue, Directory) {
    let directory = directory();
    let (registry, queue) = enabled(VOLUME, &directory);
    let front = Arc::new(Later::default());
    registry.front().set(hosts.iter().map(|&host| host.to_owned()).collect(), Arc::clone(&front) as _);
    (front, queue, directory)
}

fn request(queue: &mut AdminQueue, data: &[u8], directory: &Directory) -> Result<u32, NvmeStatus> {
    let mut sqe = Sqe::new(SEND, 0).with_data(Sgl::in_capsule(data.len() as u32));
    sqe.cdw10 = (data.len() as u32).into();
    let place = queue.data_in(&sqe, data.len()).expect("it is one that brings data")?;
    assert_eq!(place, DataPlace::InCapsule { offset: 0, len: data.len() as u32 });
    match queue.on_command(&sqe, &mut data.to_vec(), directory, NOW) {
        AdminAction::Complete { result, status: NvmeStatus::SUCCESS } => Ok(result as u32),
        AdminAction::Complete { status, .. } => Err(status),
        other => panic!("{other:?}"),
    }
}

fn reply(
    queue: &mut AdminQueue,
    ticket: u32,
    (offset, len): (u32, u32),
    directory: &Directory,
) -> Result<Vec<u8>, NvmeStatus> {
    let mut sqe = Sqe::new(RECEIVE, 0);
    (sqe.cdw10, sqe.cdw11) = (ticket.into(), offset.into());
    fetch(queue, sqe, len, directory)
}

#[test]
fn a_host_that_may_sends_a_request_and_fetches_its_reply_piece_by_piece() {
    let (front, mut queue, directory) = set_up(&["nqn.other", HOST]);
    let mut sqe = Sqe::new(admin::GET_LOG_PAGE, 0);
    sqe.cdw10 = (u32::from(page::COMMAND_EFFECTS) | 1023 << 16).into();
    let effects = fetch(&mut queue, sqe, 4096, &directory).unwrap();
    let effects = CommandEffects::read_from_bytes(&effects).unwrap();
    assert!([SEND, RECEIVE, admin::IDENTIFY].iter().all(|&opcode| effects.admin[usize::from(opcode)].get() & 1 == 1));
    let ticket = request(&mut queue, b"{\"method\":\"GET\"}", &directory).unwrap();
    assert_eq!(reply(&mut queue, ticket, (0, 64), &directory), Ok(vec![0; 64]), "there is no reply yet");
    assert_eq!(front.answer(201, &[7; 40]), (HOST.to_owned(), b"{\"method\":\"GET\"}".to_vec()));
    let first = reply(&mut queue, ticket, (0, 32), &directory).unwrap();
    assert_eq!((first[0], first[4], &first[8..16], &first[16..]), (201, 40, &[0; 8][..], &[7; 16][..]));
    assert_eq!(reply(&mut queue, ticket, (99, 16), &directory), Err(NvmeStatus::INVALID_FIELD.dnr()), "beyond its end");
    let rest = reply(&mut queue, ticket, (32, 32), &directory).unwrap();
    assert_eq!(rest, [[7; 24].to_vec(), vec![0; 8]].concat());
    assert_eq!(reply(&mut queue, ticket, (0, 32), &directory), Err(NvmeStatus::INVALID_FIELD.dnr()), "it was fetched");
}

#[test]
fn to_a_host_that_may_not_and_where_nobody_may_these_commands_do_not_exist() {
    let (_, mut stranger, directory) = set_up(&["nqn.other"]);
    let (_registry, mut nobody) = enabled(VOLUME, &directory);
    for queue in [&mut stranger, &mut nobody] {
        assert_eq!(request(queue, b"{}", &directory), Err(NvmeStatus::INVALID_OPCODE.dnr()));
        assert_eq!(reply(queue, 1, (0, 64), &directory), Err(NvmeStatus::INVALID_OPCODE.dnr()));
    }
}

#[test]
fn lengths_that_lie_and_requests_without_end_are_refused() {
    let (front, mut queue, directory) = set_up(&[HOST]);
    let mut sqe = Sqe::new(SEND, 0).with_data(Sgl::in_capsule(8));
    sqe.cdw10 = 9.into();
    let wrong = NvmeStatus::DATA_SGL_LENGTH_INVALID.dnr();
    assert_eq!(queue.data_in(&sqe, 8), Some(Err(wrong)), "CDW10 says another length");
    let mut huge = Sqe::new(SEND, 0).with_data(Sgl::transport(200 << 10));
    huge.cdw10 = (200 << 10).into();
    assert_eq!(queue.data_in(&huge, 0), Some(Err(wrong)));
    let mut empty = Sqe::new(SEND, 0).with_data(Sgl::transport(0));
    empty.cdw10 = 0.into();
    assert_eq!(queue.data_in(&empty, 0), Some(Err(wrong)));
    // In a capsule of the admin queue that no transport recognised as one that brings data.
    assert_eq!(queue.reply_len(&huge, 0), Err(NvmeStatus::INVALID_FIELD.dnr()));
    let tickets: Vec<_> = (0..TICKETS_MAX).map(|_| request(&mut queue, b"{}", &directory).unwrap()).collect();
    assert_eq!(request(&mut queue, b"{}", &directory), Err(NvmeStatus::COMMAND_SEQUENCE_ERROR));
    let mut forget = Sqe::new(RECEIVE, 0);
    (forget.cdw10, forget.cdw12) = (tickets[2].into(), 1.into());
    fetch(&mut queue, forget, 16, &directory).unwrap();
    request(&mut queue, b"{}", &directory).expect("there is room again");
    assert_eq!(reply(&mut queue, tickets[0], (0, 8), &directory), Err(wrong), "no room for the head");
    // Replies that come when nobody asks for them any more.
    drop(queue);
    (0..=TICKETS_MAX).for_each(|_| drop(front.answer(200, &[1; HEAD_BYTES])));
}
