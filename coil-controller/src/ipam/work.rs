//! What the controller can be asked to look at, and what it can find to do.

use std::sync::Arc;

use coil_api::{crd::AddressBlock, names::FINALIZER};

/// An object to look at.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// An AddressPool: its finalizer.
    Pool(String),
    /// A BlockRequest: its answer.
    Request(String),
    /// An AddressBlock whose node is gone.
    Block(String),
    /// All nodes: whether the watch of them still tells the truth, and then the blocks of those that are gone.
    Nodes,
}

/// One incarnation of a BlockRequest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRef {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// The version that the decision was made on.
    pub version: String,
}

/// Why a request gets no block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Reason of the Failed condition.
    pub reason: String,
    /// Its message.
    pub message: String,
}

/// Something to write to the API server.
#[derive(Debug, Clone, PartialEq)]
pub enum Work {
    /// Set a pool's finalizers.
    Finalizers {
        /// The pool.
        pool: String,
        /// The version that the decision was made on.
        version: String,
        /// The whole new list.
        finalizers: Vec<String>,
    },
    /// Let a pool that is being deleted go: it has no blocks left as far as is known.
    LetGo {
        /// The pool.
        pool: String,
        /// The version that the decision was made on.
        version: String,
        /// The list without ours.
        finalizers: Vec<String>,
    },
    /// Create the block, then answer.
    Carve {
        /// Whose.
        request: RequestRef,
        /// The new block.
        block: Box<AddressBlock>,
    },
    /// Look whether a block that was made for a request, and that no event may ever tell of, is there.
    Confirm {
        /// UID of the request, which may be gone.
        request: String,
        /// Name of the block.
        block: String,
    },
    /// The block is there: answer.
    Answer {
        /// Whose.
        request: RequestRef,
        /// Name of the block.
        block: String,
    },
    /// Answer that there is none.
    Refuse {
        /// Whose.
        request: RequestRef,
        /// Why.
        refusal: Refusal,
    },
    /// Refuse, unless the pool is there after all: the watch may be late.
    RefuseWithoutPool {
        /// Whose.
        request: RequestRef,
        /// The pool it asks for.
        pool: String,
        /// Why.
        refusal: Refusal,
    },
    /// Refuse, unless the node is there after all: the watch may be late, or not be allowed.
    RefuseWithoutNode {
        /// Whose.
        request: RequestRef,
        /// The node it names.
        node: String,
        /// Why.
        refusal: Refusal,
    },
    /// List the nodes. Those that were known when it began and are not listed are gone.
    ListNodes {
        /// The nodes that are known.
        known: Vec<Arc<str>>,
    },
    /// Delete a block, unless its node is there after all.
    Collect {
        /// The block.
        block: String,
        /// Its UID.
        uid: String,
        /// The node that is not there; empty when the block names none.
        node: String,
    },
}

/// The list with or without our finalizer.
pub(super) fn finalizers(current: &[String], wanted: bool) -> Vec<String> {
    let others = current.iter().filter(|f| *f != FINALIZER).cloned();
    others.chain(wanted.then(|| FINALIZER.to_owned())).collect()
}

impl Work {
    /// UID of the request that this is about.
    pub(super) fn request(&self) -> Option<&str> {
        match self {
            Self::Carve { request, .. }
            | Self::Answer { request, .. }
            | Self::Refuse { request, .. }
            | Self::RefuseWithoutPool { request, .. }
            | Self::RefuseWithoutNode { request, .. } => Some(&request.uid),
            Self::Confirm { request, .. } => Some(request),
            Self::Finalizers { .. } | Self::LetGo { .. } | Self::ListNodes { .. } | Self::Collect { .. } => {
                None
            }
        }
    }
}
