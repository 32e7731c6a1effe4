//! Answers that are sent while they are being made.

use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::anyhow;
use axum::body::Bytes;
use hyper::body::{Body, Frame};
use tokio::sync::mpsc;

/// How many pieces are made ahead of what has been sent.
const AHEAD: usize = 2;

/// Where pieces go in; none is the end.
pub struct Pipe(mpsc::Sender<anyhow::Result<Option<Bytes>>>);

/// The body of an answer, made of the pieces. (The channel of http-body-util now and then loses the last one, when it comes and
/// the sender goes between two looks.)
pub struct Pieces(mpsc::Receiver<anyhow::Result<Option<Bytes>>>);

/// An answer, and where its pieces go in. It is a whole one only when it [has been ended](Pipe::end).
#[must_use]
pub fn pieces() -> (Pipe, Pieces) {
    let (sender, receiver) = mpsc::channel(AHEAD);
    (Pipe(sender), Pieces(receiver))
}

impl Pipe {
    /// Sends a piece, and says whether anybody reads on.
    pub async fn send(&self, piece: impl Into<Bytes>) -> bool {
        self.0.send(Ok(Some(piece.into()))).await.is_ok()
    }

    /// Ends the answer, or cuts it off, so that whoever reads it takes it for no whole one.
    pub async fn end(self, made: anyhow::Result<()>) {
        // Whoever has gone need not know.
        let _ = self.0.send(made.map(|()| None)).await;
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = anyhow::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<anyhow::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|piece| {
            let piece = piece.unwrap_or_else(|| Err(anyhow!("whoever makes the answer is gone")));
            piece.map(|piece| piece.map(Frame::data)).transpose()
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_piece_arrives_however_soon_the_sender_goes() {
        for count in 0..20_000 {
            let (pipe, body) = pieces();
            let sending = tokio::spawn(async move {
                for _ in 0..count % 4 {
                    assert!(pipe.send("x").await);
                }
                pipe.end(Ok(())).await;
            });
            assert_eq!(body.collect().await.unwrap().to_bytes().len(), count % 4);
            sending.await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_answer_that_was_cut_off_is_no_whole_one() {
        let (pipe, body) = pieces();
        assert!(pipe.send("x").await);
        pipe.end(Err(anyhow!("cut"))).await;
        assert!(body.collect().await.is_err());
        let (pipe, body) = pieces();
        assert!(pipe.send("x").await);
        drop(pipe);
        assert!(body.collect().await.is_err(), "its maker has panicked");
        let (pipe, body) = pieces();
        drop(body);
        assert!(!pipe.send("x").await);
    }
}
