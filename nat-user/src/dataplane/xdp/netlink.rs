//! Questions to the kernel by netlink(7).

use std::fmt;

use anyhow::{bail, ensure};
use log::debug;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// How often a list is asked for that changes while the kernel tells it.
const ATTEMPTS: u32 = 10;

/// Asks for everything of a kind, and answers the whole list.
pub(super) fn dump<T>(protocol: isize, request: &T) -> anyhow::Result<Vec<T>>
where
    T: NetlinkSerializable + NetlinkDeserializable + fmt::Debug + Clone + Into<NetlinkPayload<T>>,
{
    Ok(whole(protocol, request)?.0)
}

/// [`dump`], which fails if anything is not understood.
pub(super) fn dump_all<T>(protocol: isize, request: &T) -> anyhow::Result<Vec<T>>
where
    T: NetlinkSerializable + NetlinkDeserializable + fmt::Debug + Clone + Into<NetlinkPayload<T>>,
{
    let (messages, answer) = whole(protocol, request)?;
    ensure!(answer.unknown == 0, "{} messages cannot be understood", answer.unknown);
    Ok(messages)
}

/// Asks once for everything of a kind, and answers whether nothing may have been missing. What there may be millions of need not be
/// held at once.
pub(super) fn dump_each<T>(protocol: isize, request: &T, each: impl FnMut(T)) -> anyhow::Result<bool>
where
    T: NetlinkSerializable + NetlinkDeserializable + fmt::Debug + Clone + Into<NetlinkPayload<T>>,
{
    let answer = ask(protocol, request.clone(), NLM_F_REQUEST | NLM_F_DUMP, each)?;
    Ok(!answer.interrupted && answer.unknown == 0)
}

/// An answer in which nothing is missing, as may be in one that was interrupted.
fn whole<T>(protocol: isize, request: &T) -> anyhow::Result<(Vec<T>, Answer)>
where
    T: NetlinkSerializable + NetlinkDeserializable + fmt::Debug + Clone + Into<NetlinkPayload<T>>,
{
    for _ in 0..ATTEMPTS {
        let mut messages = Vec::new();
        let flags = NLM_F_REQUEST | NLM_F_DUMP;
        let answer = ask(protocol, request.clone(), flags, |message| messages.push(message))?;
        if !answer.interrupted {
            return Ok((messages, answer));
        }
    }
    bail!("the list changes faster than the kernel can tell it")
}

/// Asks for one thing, and answers what the kernel says before it says that it is done.
pub(super) fn call<T>(protocol: isize, request: T) -> anyhow::Result<Vec<T>>
where
    T: NetlinkSerializable + NetlinkDeserializable + fmt::Debug + Into<NetlinkPayload<T>>,
{
    let mut messages = Vec::new();
    ask(protocol, request, NLM_F_REQUEST | NLM_F_ACK, |message| messages.push(message))?;
    Ok(messages)
}

/// What the kernel's answer was like.
#[derive(Default)]
struct Answer {
    /// Whether it was interrupted in telling it.
    interrupted: bool,
    /// Messages that are not understood.
    unknown: u32,
}

fn ask<T>(protocol: isize, request: T, flags: u16, mut each: impl FnMut(T)) -> anyhow::Result<Answer>
where
    T: NetlinkSerializable + NetlinkDeserializable + fmt::Debug + Into<NetlinkPayload<T>>,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), request.into());
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answer = Answer::default();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let header = NetlinkBuffer::new_checked(rest)?;
            let length = header.length() as usize;
            answer.interrupted |= header.flags() & NLM_F_DUMP_INTR != 0;
            match NetlinkMessage::<T>::deserialize(rest).map(|message| message.payload) {
                Ok(NetlinkPayload::InnerMessage(inner)) => each(inner),
                Ok(NetlinkPayload::Done(_)) => return Ok(answer),
                Ok(NetlinkPayload::Error(error)) if error.code.is_none() => return Ok(answer),
                Ok(NetlinkPayload::Error(error)) => bail!(error.to_io()),
                Ok(_) => {}
                // What only a newer kernel knows is none of ours.
                Err(error) => {
                    debug!("a netlink message that cannot be understood: {error}");
                    answer.unknown += 1;
                }
            }
            // Messages begin at multiples of four bytes.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
