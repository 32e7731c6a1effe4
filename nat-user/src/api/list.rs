//! Lists of any length: read and sent some at a time, so that a million EIPs take no more memory than some thousands, and let
//! commands through. What comes or goes meanwhile may or may not be in a list; all else is in it once.

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::ApiError;
use super::pieces::{Pipe, pieces};
use crate::control::{self, Control, Shared};

/// How many are read at a time.
pub(super) const AT_ONCE: usize = 2048;

/// Some of a list, and from where it goes on, if there are more.
pub(super) type Piece<T, K> = (Vec<T>, Option<K>);

/// Answers a list as a JSON array, each piece of which is a line.
pub(super) async fn answer<T: Serialize + Send + 'static, K: Send + 'static>(
    control: Shared,
    from: K,
    read: fn(&Control, K) -> Piece<T, K>,
) -> Result<Response, ApiError> {
    let first = control::call(&control, move |control| read(control, from)).await?;
    let (pipe, body) = pieces();
    tokio::spawn(async move {
        let made = send(&control, first, read, &pipe).await;
        // A short answer would be taken for all.
        pipe.end(made).await;
    });
    let format = [(header::CONTENT_TYPE, "application/json")];
    Ok((format, Body::new(body)).into_response())
}

async fn send<T: Serialize + Send + 'static, K: Send + 'static>(
    control: &Shared,
    (mut some, mut next): Piece<T, K>,
    read: fn(&Control, K) -> Piece<T, K>,
    pipe: &Pipe,
) -> anyhow::Result<()> {
    let mut text = vec![b'['];
    loop {
        for (place, one) in some.iter().enumerate() {
            if place > 0 {
                text.push(b',');
            }
            serde_json::to_writer(&mut text, one)?;
        }
        text.extend_from_slice(if next.is_some() { b",\n" } else { b"]" });
        let reads_on = pipe.send(text).await;
        let Some(from) = next.filter(|_| reads_on) else { return Ok(()) };
        (some, next) = control::call(control, move |control| read(control, from)).await?;
        text = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::{Duration, SystemTime};

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::api::types;
    use crate::config;
    use crate::dataplane::memory::MemoryDataplane;
    use crate::model::{Line, Name, PoolSpec, Spec};
    use crate::store::Store;

    fn control(count: u32) -> Shared {
        let pool = PoolSpec {
            name: Name::default_one(),
            cidrs: vec!["203.0.0.0/16".parse().unwrap()],
            reserve: [].into(),
            reuse_delay: Duration::ZERO,
        };
        let spec = Spec { pools: vec![pool], ..Spec::default() };
        let store = Store::in_memory(spec, count).unwrap();
        let (dataplane, now) = (MemoryDataplane::new(count), SystemTime::UNIX_EPOCH);
        let mut control = Control::start(store, Box::new(dataplane), config::Usage::default(), now).unwrap();
        let line = |number: u32| Line {
            number: number.into(),
            eip: (0xcb00_0000 + number).into(),
            private_ip: (0x0a00_0000 + number).into(),
            account: None,
        };
        control.import(&(0..count).map(line).collect::<Vec<_>>(), now).unwrap();
        Shared::new(control)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_list_is_an_array_of_many_lines() {
        let piece = u32::try_from(AT_ONCE).unwrap();
        for (count, lines) in [(0, 1), (1, 1), (piece, 1), (piece + 1, 2), (2 * piece + 5, 3)] {
            let answer = answer(control(count), Ipv4Addr::UNSPECIFIED, |control, from| {
                let model = control.model();
                let mut eips = model.eips_from(from);
                let some = eips.by_ref().take(AT_ONCE).map(|eip| types::Eip::of(model, eip)).collect();
                (some, eips.next().map(|eip| eip.address))
            });
            let answer = answer.await.ok().unwrap();
            assert_eq!(answer.headers()[header::CONTENT_TYPE], "application/json");
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body.split(|byte| *byte == b'\n').count(), lines);
            let list: Vec<types::Eip> = serde_json::from_slice(&body).unwrap();
            assert_eq!(list.len(), count as usize);
            assert!(list.is_sorted_by_key(|eip| eip.eip));
        }
    }
}
