//! Which program is next, if several could be.

use fastrand::Rng;

pub enum Orders {
    /// All, depth first: the choice at each position, and the number of choices.
    All(Vec<(usize, usize)>),
    Random(Rng),
}

impl Orders {
    pub fn all() -> Self {
        Self::All(vec![])
    }

    /// Whether statements that no other program can touch count as no choice.
    pub fn are_all(&self) -> bool {
        matches!(self, Self::All(_))
    }

    pub fn choose(&mut self, depth: usize, among: usize) -> usize {
        match self {
            Self::Random(random) => random.usize(..among),
            Self::All(path) => {
                // A false 40001 may lead to another path than last time.
                if depth < path.len() && path[depth].1 != among {
                    path.truncate(depth);
                }
                if depth == path.len() {
                    path.push((0, among));
                }
                path[depth].0
            }
        }
    }

    /// Turns to the next order. Returns false if there is none.
    pub fn turn(&mut self) -> bool {
        let Self::All(path) = self else { return true };
        while let Some((chosen, among)) = path.pop() {
            if chosen + 1 < among {
                path.push((chosen + 1, among));
                return true;
            }
        }
        false
    }
}
