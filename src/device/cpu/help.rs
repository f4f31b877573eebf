//! Whether replays of a program gain by the help of other threads: measured now and again.
//!
//! Help costs what passes between the caches of two processors: claims, and the results of one that
//! the other reads. Where two processors share a cache that is some 30 ns a line, where they do not
//! several times that: there a step of some 60 us is slower with help than without. Which
//! processors a thread has, a virtual machine decides anew from minute to minute. Results do not
//! depend on the choice.

use std::time::Duration;

/// Replays that take longer gain by help wherever the threads run.
const LONG: Duration = Duration::from_millis(1);
/// Replays of a trial that are not timed: threads wake up, caches fill.
const UNTIMED: u32 = 5;
/// Replays of a trial that are timed, with help and then as many alone; the median counts.
const TIMED: usize = 7;
/// Replays of a trial in which nobody helped, of those that should have: so many end it, and help
/// is not called until the next one.
const MOST_MISSED: u32 = 50;
/// Replays from one trial to the next: from the first number, doubling to the second while the
/// choice stays the same, so that trials cost less than a hundredth of the time.
const PAUSE: [u32; 2] = [100, 6400];
/// How much slower help must be for the caller to work alone.
const MARGIN: f64 = 1.02;

/// Medians of the newest trial.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trial {
    /// Of replays with help.
    pub helped: Duration,
    /// Of replays by the calling thread alone.
    pub alone: Duration,
}

/// The choice for one program.
pub(super) struct Help {
    /// What holds between trials.
    wanted: bool,
    at: At,
    samples: [Duration; TIMED],
    helped: Duration,
    trial: Option<Trial>,
    pause: u32,
    /// Replays of this trial in which nobody came to help.
    missed: u32,
}

/// Where in the cycle the next replay is.
#[derive(Clone, Copy)]
enum At {
    Always,
    Pause { left: u32 },
    Trial { helped: bool, replay: u32 },
}

impl Help {
    pub fn new() -> Help {
        Help {
            wanted: true,
            at: At::Pause { left: PAUSE[0] },
            samples: [Duration::ZERO; TIMED],
            helped: Duration::ZERO,
            trial: None,
            pause: PAUSE[0],
            missed: 0,
        }
    }

    /// Help always, without trials.
    pub fn always() -> Help {
        Help { at: At::Always, ..Help::new() }
    }

    /// Whether the next replay is to be offered to others.
    pub fn wanted(&self) -> bool {
        match self.at {
            At::Always => true,
            At::Pause { .. } => self.wanted,
            At::Trial { helped, .. } => helped,
        }
    }

    /// The newest trial; `None` before the first.
    pub fn trial(&self) -> Option<Trial> {
        self.trial
    }

    /// Notes how long the replay took, and whether anybody helped.
    pub fn took(&mut self, time: Duration, helped: bool) {
        self.at = match self.at {
            At::Always => At::Always,
            At::Pause { left } if left > 1 => At::Pause { left: left - 1 },
            At::Pause { .. } if time >= LONG && self.wanted => At::Pause { left: self.pause },
            At::Pause { .. } => {
                self.missed = 0;
                At::Trial { helped: true, replay: 0 }
            }
            // Other work has the processors, or the others sleep and wake too late: such a replay
            // tells nothing of help. Where it does not come at all, calling for it is for nothing.
            At::Trial { helped: true, .. } if !helped => {
                self.missed += 1;
                if self.missed < MOST_MISSED {
                    return;
                }
                (self.wanted, self.pause) = (false, PAUSE[0]);
                At::Pause { left: self.pause }
            }
            At::Trial { helped, replay } => {
                if let Some(sample) = replay.checked_sub(UNTIMED) {
                    self.samples[sample as usize] = time;
                }
                match (replay + 1 == UNTIMED + TIMED as u32, helped) {
                    (false, _) => At::Trial { helped, replay: replay + 1 },
                    (true, true) => {
                        self.helped = self.median();
                        At::Trial { helped: false, replay: 0 }
                    }
                    (true, false) => self.decide(),
                }
            }
        }
    }

    fn median(&mut self) -> Duration {
        self.samples.sort_unstable();
        self.samples[TIMED / 2]
    }

    fn decide(&mut self) -> At {
        let trial = Trial { helped: self.helped, alone: self.median() };
        self.trial = Some(trial);
        let wanted = trial.helped.as_secs_f64() <= MARGIN * trial.alone.as_secs_f64();
        self.pause = match wanted == self.wanted {
            true => (2 * self.pause).min(PAUSE[1]),
            false => PAUSE[0],
        };
        self.wanted = wanted;
        At::Pause { left: self.pause }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replays so often; with help a replay takes `helped` us, else `alone` us. Gives how many had
    /// help.
    fn replay(help: &mut Help, often: u32, helped: u64, alone: u64) -> u32 {
        let mut count = 0;
        for _ in 0..often {
            let with = help.wanted();
            count += u32::from(with);
            help.took(Duration::from_micros(if with { helped } else { alone }), with);
        }
        count
    }

    #[test]
    fn help_is_kept_where_it_is_faster_and_trials_are_rare() {
        let mut help = Help::new();
        assert!(replay(&mut help, 20_000, 35, 66) > 19_800);
        assert!(help.wanted());
    }

    #[test]
    fn help_is_refused_where_it_is_slower_until_that_changes() {
        let mut help = Help::new();
        assert!(replay(&mut help, 20_000, 146, 66) < 300);
        let us = Duration::from_micros;
        assert_eq!(help.trial(), Some(Trial { helped: us(146), alone: us(66) }));
        replay(&mut help, PAUSE[1] + 50, 35, 66);
        assert!(replay(&mut help, 20_000, 35, 66) > 19_800);
    }

    #[test]
    fn single_slow_replays_do_not_decide() {
        let mut help = Help::new();
        for round in 0..5000 {
            let with = help.wanted();
            let slow = round % 4 == 0;
            let usual = if with { 35 } else { 66 };
            help.took(Duration::from_micros(if slow { 3000 } else { usual }), with);
        }
        assert!(help.trial().is_some_and(|trial| trial.helped < trial.alone));
    }

    #[test]
    fn help_that_never_comes_is_not_called_until_it_does() {
        let mut help = Help::new();
        let mut called = 0;
        for _ in 0..20_000 {
            called += u32::from(help.wanted());
            help.took(Duration::from_micros(60), false);
        }
        assert!(called < 8000, "called {called} times");
        assert!(replay(&mut help, 20_000, 35, 66) > 19_000);
    }

    #[test]
    fn replays_that_nobody_helped_with_are_no_trial() {
        let mut help = Help::new();
        replay(&mut help, 20_000, 146, 66);
        for _ in 0..20_000 {
            help.took(Duration::from_micros(60), false);
        }
        assert!(!help.wanted);
        assert_eq!(help.trial().map(|trial| trial.helped), Some(Duration::from_micros(146)));
    }

    #[test]
    fn long_replays_always_have_help() {
        let mut help = Help::new();
        assert_eq!(replay(&mut help, 5000, 1500, 900), 5000);
        assert_eq!(help.trial(), None);
    }
}
