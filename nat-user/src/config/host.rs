//! Whether this machine has what the configuration names.

use nix::unistd::Group;
use rustix::fd::OwnedFd;
use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::{Config, KeyError};

/// Checks the interfaces and the group, and puts each interface's own name in the place of an alternative one.
pub(super) fn check(config: &mut Config) -> Result<(), KeyError> {
    let datapath = &mut config.datapath;
    for (key, names) in
        [("datapath.uplinks", &mut datapath.uplinks), ("datapath.downlinks", &mut datapath.downlinks)]
    {
        let own_names = names.iter().map(|name| own_name(key, name)).collect::<Result<Vec<_>, _>>()?;
        if let Some(second) =
            (1..own_names.len()).find(|&second| own_names[..second].contains(&own_names[second]))
        {
            let what =
                format!(r#""{}" is another name of "{}"; name it once"#, names[second], own_names[second]);
            return Err(KeyError::new(key, what));
        }
        *names = own_names;
    }
    config.api.group.as_deref().map(group_id).transpose()?;
    Ok(())
}

fn own_name(key: &str, name: &str) -> Result<String, KeyError> {
    let socket =
        any_socket().map_err(|error| KeyError::new(key, format!("cannot look interfaces up: {error}")))?;
    name_to_index(&socket, name).and_then(|index| index_to_name(&socket, index)).map_err(|_| {
        KeyError::new(key, format!(r#"there is no interface "{name}"; ip link shows those of this machine"#))
    })
}

/// Interfaces are looked up through a socket, whichever it is.
fn any_socket() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

/// The number of the group in `[api] group`.
///
/// # Errors
/// If there is no such group.
pub(crate) fn group_id(name: &str) -> Result<u32, KeyError> {
    let missing = || {
        let what =
            format!(r#"there is no group "{name}"; make it with groupadd --system {name}, or name another"#);
        KeyError::new("api.group", what)
    };
    Ok(Group::from_name(name).ok().flatten().ok_or_else(missing)?.gid.as_raw())
}
