//! Connections that have changed to another protocol: bytes both ways.

use std::sync::Arc;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io;

use crate::front::Client;

/// Joins both ends until one of them has finished, or the service ends.
pub(crate) async fn join(client: Arc<Client>, ours: OnUpgrade, theirs: OnUpgrade) {
    let joined = async {
        let (ours, theirs) = tokio::try_join!(ours, theirs).map_err(io::Error::other)?;
        let (mut ours, mut theirs) = (TokioIo::new(ours), TokioIo::new(theirs));
        io::copy_bidirectional(&mut ours, &mut theirs).await
    };
    let mut stop = client.stop();
    tokio::select! {
        ended = joined => if let Err(error) = ended {
            tracing::debug!(%error, "a tunnel has ended");
        },
        () = stop.given() => {}
    }
}
