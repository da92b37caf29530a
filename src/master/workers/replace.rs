//! One worker of a pool relieved by another, which is started in the same slot first.

use crate::master::dispatch::WorkerId;
use crate::master::time::Time;
use crate::master::workers::process::Process;
use crate::master::workers::slots::Post;
use crate::master::workers::table::Processes;

/// A worker that is to have a successor while it still serves.
#[derive(Debug, Clone, Copy)]
pub struct Relief {
    worker: WorkerId,
    /// When the successor is to be started; `None` while there is one.
    from: Option<Time>,
}

impl Processes {
    /// Wants a second worker in the slot of this one. It is the only slot that has two at a time.
    pub fn relieve(&mut self, worker: WorkerId) {
        self.relief = Some(Relief {
            worker,
            from: Some(Time::default()),
        });
    }

    /// Wants no second worker any more: the one that there may be is the first now, or there is none.
    pub fn end_relief(&mut self) {
        self.relief = None;
    }

    /// The successor of a worker in its slot, ready or not.
    #[must_use]
    pub fn successor(&self, of: &Process) -> Option<&Process> {
        self.members().find(|process| {
            process.slot == of.slot && process.worker != of.worker && !process.leaving
        })
    }

    /// The place that has a worker and is to have a second one, and from when on.
    pub(in crate::master) fn relief_due(&self) -> Option<(Post, Time)> {
        let from = self.relief?.from?;
        self.relieved_post().map(|post| (post, from))
    }

    /// The place of the worker that is being relieved, unless there is no use in that any more.
    fn relieved_post(&self) -> Option<Post> {
        let worker = self.relief?.worker;
        let process = self
            .members()
            .find(|process| process.worker == worker && process.serves())?;
        Some(Post {
            generation: process.generation,
            slot: process.slot,
        })
    }

    /// A process was started for a post. False when it is not the second one there.
    pub(in crate::master) fn filled_by_relief(&mut self, post: Post) -> bool {
        let due = self.relief_due().is_some_and(|(due, _)| due == post);
        if due && let Some(relief) = &mut self.relief {
            relief.from = None;
        }
        due
    }

    /// One of two processes of a post has gone, or the second one could not be started.
    pub(in crate::master) fn relief_vacated(&mut self, post: Post, early: bool, now: Time) {
        if self.relieved_post() == Some(post)
            && let Some(from) = self
                .crew(post.generation)
                .and_then(|crew| crew.put_off(post.slot, early, now))
            && let Some(relief) = &mut self.relief
        {
            relief.from = Some(from);
        }
    }
}
