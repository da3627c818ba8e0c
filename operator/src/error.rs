//! What can go wrong between the operator and the API server or the nodes. Each kind is a label of the
//! error counter; the text is for people.

/// A reconcile that has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading {what}: {source}")]
    Read { what: String, source: kube::Error },
    #[error("writing {what}: {source}")]
    Write { what: String, source: kube::Error },
    /// What the spec asks for is no object that the API server takes, whoever writes it.
    #[error("{what} is refused: {source}")]
    Invalid { what: String, source: kube::Error },
    /// The storage class does not allow it, or a quota does not.
    #[error("{what} cannot grow: {source}")]
    CannotGrow { what: String, source: kube::Error },
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

const FORBIDDEN: u16 = 403;
const CONFLICT: u16 = 409;
const INVALID: u16 = 422;

impl Error {
    pub(crate) fn read(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        |source| Self::Read { what: what.into(), source }
    }

    pub(crate) fn write(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        |source| match code(&source) {
            Some(CONFLICT) => Self::Conflict { what: what.into() },
            _ => Self::Write { what: what.into(), source },
        }
    }

    /// Of a child, which says what the spec says.
    pub(crate) fn child(what: String) -> impl FnOnce(kube::Error) -> Self {
        |source| match code(&source) {
            Some(INVALID) => Self::Invalid { what, source },
            _ => Self::write(what)(source),
        }
    }

    /// Of a claim that is to grow.
    pub(crate) fn growth(what: String) -> impl FnOnce(kube::Error) -> Self {
        |source| match code(&source) {
            Some(FORBIDDEN | INVALID) => Self::CannotGrow { what, source },
            _ => Self::write(what)(source),
        }
    }

    /// A label with few values.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read",
            Self::Write { .. } | Self::Invalid { .. } | Self::CannotGrow { .. } => "write",
            Self::Conflict { .. } => "conflict",
            Self::Node(NodeError::Refused { .. }) => "node_refused",
            Self::Node(NodeError::Unreachable { .. }) => "node_unreachable",
            Self::Node(NodeError::Garbage { .. }) => "node_garbage",
        }
    }

    pub const KINDS: [&'static str; 6] =
        ["read", "write", "conflict", "node_refused", "node_unreachable", "node_garbage"];
}

/// Of an answer; None: there was none.
fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}
