//! What systemd is told (sd_notify(3)), when it has started the agent. Nothing without it.

use std::time::Duration;

use sd_notify::NotifyState;

/// How often systemd expects a sign of life: half of the time after which it would act.
pub(super) fn interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// The agent is at work.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// How things stand.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// A sign of life.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// The agent ends.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    // Nobody listens, or not any more: systemd finds out by itself.
    let _unheard = sd_notify::notify(states);
}
