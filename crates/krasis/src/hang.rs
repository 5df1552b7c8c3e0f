//! What becomes of a server whose engine hangs: devices may stop answering without a word.

use krasis_engine::Census;
use std::sync::Arc;
use std::time::Duration;

/// Looks at the engine within the time that it has for a sign of life. They are counted, and not the
/// clock: a process that was stopped and goes on finds its engine alive.
const LOOKS: u32 = 20;

/// Calls `hung` once the engine has had something to do for so long and done none of it.
pub fn watch(
    census: Arc<Census>,
    patience: Duration,
    hung: impl FnOnce() + Send + 'static,
) -> std::io::Result<()> {
    let watch = move || {
        let (mut pulse, mut looks) = (0, 0);
        while looks <= LOOKS {
            std::thread::sleep(patience / LOOKS);
            let now = Census::read(&census.pulse);
            looks = if census.is_busy() && now == pulse { looks + 1 } else { 0 };
            pulse = now;
        }
        eprintln!(
            "krasis: the engine has not gone on for {} s although it has work: its device hangs. \
             --hang-timeout sets that time",
            patience.as_secs()
        );
        hung();
    };
    std::thread::Builder::new().name("hang-watch".into()).spawn(watch).map(drop)
}
