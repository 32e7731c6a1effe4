//! The far end of an interface's cable: frames are put on it and taken from it as they are.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt, socket, sockopt,
};

/// Room for more frames than are ever under way.
const BUFFER: usize = 8 << 20;

/// A raw socket on an interface. It does not see what it sends itself.
#[derive(Debug)]
pub(super) struct Tap(OwnedFd);

impl Tap {
    /// On an interface of the present network namespace.
    pub(super) fn open(interface: &str) -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        setsockopt(&fd, sockopt::RcvBufForce, &BUFFER)?;
        let address = getifaddrs()?
            .filter(|entry| entry.interface_name == interface)
            .find_map(|entry| entry.address?.as_link_addr().copied())
            .with_context(|| format!("there is no interface {interface}"))?;
        bind(fd.as_raw_fd(), &address).with_context(|| format!("cannot listen on {interface}"))?;
        Ok(Self(fd))
    }

    /// Puts a frame on the cable.
    pub(super) fn send(&self, frame: &[u8]) -> Result<()> {
        loop {
            match send(self.0.as_raw_fd(), frame, MsgFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(Errno::ENOBUFS | Errno::EAGAIN) => std::thread::sleep(Duration::from_micros(50)),
                Err(error) => return Err(error).with_context(|| format!("a frame of {} bytes", frame.len())),
            }
        }
    }

    /// The next frame, if there is one.
    pub(super) fn receive(&self) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; 4096];
        match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) => {
                frame.truncate(length);
                Ok(Some(frame))
            }
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
