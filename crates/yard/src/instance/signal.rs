//! Signals by number: those of signal(7) that have the same number on every architecture that
//! netyard runs on.

/// `SIGHUP`.
pub(crate) const HANGUP: i32 = 1;
/// `SIGINT`.
pub(crate) const INTERRUPT: i32 = 2;
/// `SIGQUIT`.
pub(crate) const QUIT: i32 = 3;
/// `SIGKILL`.
pub(crate) const KILL: i32 = 9;
/// `SIGTERM`.
pub(crate) const TERMINATE: i32 = 15;
/// `SIGCHLD`.
pub(super) const CHILD_ENDED: i32 = 17;
/// `SIGWINCH`.
pub(super) const SIZE_CHANGED: i32 = 28;

/// What init reads: the end of a child, and what it passes on to the program.
pub(super) const WATCHED: [i32; 5] = [CHILD_ENDED, HANGUP, INTERRUPT, QUIT, TERMINATE];

/// What a terminal sends to every process of its foreground group, the program among them.
pub(super) const FROM_TERMINAL: [i32; 3] = [HANGUP, INTERRUPT, QUIT];
