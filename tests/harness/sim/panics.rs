//! A broken promise is a panic. Within a run it is kept, with its place, instead of being printed.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Some: this thread runs a simulation.
    static CAUGHT: RefCell<Option<String>> = const { RefCell::new(None) };
}

static INSTALL: Once = Once::new();

/// What the panic said, and where, if there was one.
pub(super) fn caught(run: impl FnOnce()) -> Option<String> {
    INSTALL.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |info| {
            if !keep(info) {
                usual(info);
            }
        }));
    });
    CAUGHT.set(Some(String::new()));
    let ended = catch_unwind(AssertUnwindSafe(run));
    let said = CAUGHT.take().unwrap_or_default();
    ended.err().map(|_panic| said)
}

fn keep(info: &PanicHookInfo<'_>) -> bool {
    CAUGHT.with_borrow_mut(|caught| {
        let Some(said) = caught else { return false };
        let text = info.payload().downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| info.payload().downcast_ref::<&str>().copied()).unwrap_or("a panic");
        let place = info.location().map(|location| format!(" ({}:{})", location.file(), location.line()));
        *said = format!("{text}{}", place.unwrap_or_default());
        true
    })
}
