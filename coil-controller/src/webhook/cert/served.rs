//! The certificate that connections get.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Notify;
use tokio_rustls::rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

/// Holds the certificate; a new one is used from the next connection on.
#[derive(Debug, Default)]
pub struct Served {
    current: RwLock<Option<Arc<CertifiedKey>>>,
    replaced: Notify,
}

impl Served {
    /// The certificate, when there is one.
    #[must_use]
    pub fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this certificate is served.
    #[must_use]
    pub fn is(&self, key: &CertifiedKey) -> bool {
        self.current().is_some_and(|current| current.cert == key.cert)
    }

    /// Serves this one from now on. Tells whether another one was served before.
    pub fn replace(&self, key: Arc<CertifiedKey>) -> bool {
        let old = self.current.write().unwrap_or_else(PoisonError::into_inner).replace(key);
        if old.is_some() {
            self.replaced.notify_one();
        }
        old.is_some()
    }

    /// Waits until a certificate takes the place of another. For one waiter; the first certificate does not count.
    pub async fn replaced(&self) {
        self.replaced.notified().await;
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current()
    }
}
