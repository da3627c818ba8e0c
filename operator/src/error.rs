//! What can go wrong between the operator and the API server or the nodes. Each kind is a label of the
//! error counter; the text is for people.

/// A reconcile that has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading {what}: {source}")]
    Read { what: String, source: kube::Error },
    #[error("writing {what}: {source}")]
    Write { what: String, source: kube::Error },
    /// Somebody else wrote first: what was decided may be out of date.
    #[error("{what} was changed by somebody else meanwhile")]
    Conflict { what: String },
    #[error(transparent)]
    Node(#[from] NodeError),
}

/// A node that did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    #[error("{pod} does not answer")]
    Unreachable { pod: String },
    #[error("{pod} gave an answer that makes no sense: {why}")]
    Garbage { pod: String, why: String },
    /// `code` is the node's own, from a fixed list.
    #[error("{pod} refused: {detail} ({code})")]
    Refused { pod: String, code: String, detail: String },
}

const CONFLICT: u16 = 409;

impl Error {
    pub(crate) fn read(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        |source| Self::Read { what: what.into(), source }
    }

    pub(crate) fn write(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        |source| match &source {
            kube::Error::Api(status) if status.code == CONFLICT => Self::Conflict { what: what.into() },
            _ => Self::Write { what: what.into(), source },
        }
    }

    /// A label with few values.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } => "write",
            Self::Conflict { .. } => "conflict",
            Self::Node(NodeError::Refused { .. }) => "node_refused",
            Self::Node(_) => "node_unreachable",
        }
    }

    pub const KINDS: [&'static str; 5] = ["read", "write", "conflict", "node_refused", "node_unreachable"];
}
