//! `shm.sock`: where programs on this machine ask for a volume over shared memory.

use ringway_reactor::mailbox::Injector;
use ringway_shm_ring::door::{Door, Knock, Limits};

use super::config::TargetConfig;
use super::error::StartError;
use super::unix::{Bound, Remote, SocketType, bind};
use crate::node::message::Message;
use crate::transport::shm::Mail;

/// Its name in the runtime folder.
pub const SOCKET: &str = "shm.sock";

/// The socket and the thread behind it. Clients that come before [`Entry::listen`] wait.
pub(super) struct Entry {
    bound: Bound,
    door: Door,
}

impl Entry {
    /// Makes the socket, where the configuration wants one. What speaks against it is said before anything has started.
    pub(super) fn open(config: &TargetConfig, injector: Injector<Message>) -> Result<Option<Entry>, StartError> {
        if !config.shm {
            return Ok(None);
        }
        let failed = |what: &str| {
            let what = format!("{what} {}", config.runtime.display());
            move |source| StartError::System { what, source }
        };
        std::fs::create_dir_all(&config.runtime).map_err(failed("cannot make the runtime folder"))?;
        let bound = bind(&config.runtime.join(SOCKET), SocketType::SEQPACKET, config.socket_access)
            .map_err(StartError::Socket)?;
        let deliver = move |knock| {
            let mail = match knock {
                Knock::Offer(offer) => Mail::Offer(offer),
                Knock::Gone(number) => Mail::Gone(number),
            };
            injector.send(Message::Shm(mail));
        };
        let door = Door::open(Limits::default(), deliver).map_err(failed("cannot start the thread that serves"))?;
        Ok(Some(Entry { bound, door }))
    }

    /// Begins to accept.
    pub(super) fn listen(self, remote: &Remote) -> Door {
        let entrance = self.door.entrance();
        // Closed with all others when the target stops.
        let _ = remote.listen(self.bound, Box::new(move |socket| entrance.enter(socket)));
        self.door
    }
}
