//! Intents in a file.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{Intent, IntentError, IntentStore, checked, checked_retention, new_key};

/// Intents in a file that belongs to one process at a time. Each change is a line, on the disk before the call returns.
/// A line that a crash cut off is left out and overwritten. Finished intents stay: [`forget`](IntentStore::forget) them,
/// or take a new file, when their names will not come again.
#[derive(Debug, Clone)]
pub struct FileIntentStore {
    shared: Arc<Mutex<Shared>>,
    retention: Duration,
}

#[derive(Debug)]
struct Shared {
    file: File,
    /// How long the file is without a line that was cut off.
    length: u64,
    /// A crash or a failed write may have left something behind `length`.
    is_torn: bool,
    intents: HashMap<String, (Intent, bool)>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Begun { name: String, key: String, at_ms: u64 },
    Finished { name: String },
    Forgotten { name: String },
}

impl FileIntentStore {
    /// Opens or creates the file, and reads it. `retention`: how long the server remembers a key, less the longest time
    /// of a call.
    ///
    /// ```no_run
    /// # fn example() -> Result<(), pgonce_client::IntentError> {
    /// use std::time::Duration;
    /// let intents = pgonce_client::FileIntentStore::open("intents.jsonl", Duration::from_secs(23 * 3600))?;
    /// # drop(intents);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`InUse`](IntentError::InUse), [`Invalid`](IntentError::Invalid), [`Store`](IntentError::Store), also for a file
    /// that has something else in it.
    pub fn open(path: impl AsRef<Path>, retention: Duration) -> Result<Self, IntentError> {
        let retention = checked_retention(retention)?;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path).map_err(IntentError::store)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => IntentError::InUse,
            TryLockError::Error(error) => IntentError::store(error),
        })?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(IntentError::store)?;
        // What was read must outlive a crash of the machine: it may have been written and not synced before.
        file.sync_all().map_err(IntentError::store)?;
        let mut shared = Shared { file, length: 0, is_torn: false, intents: HashMap::new() };
        let mut lines = text.split_inclusive(|byte| *byte == b'\n').peekable();
        while let Some(line) = lines.next() {
            let is_last = lines.peek().is_none();
            match serde_json::from_slice(line) {
                Ok(read) if line.ends_with(b"\n") => shared.apply(read),
                // A crash cut it off or tore it. Its begin never returned, so its key was not used.
                _ if is_last => break,
                Ok(_) => unreachable!("BUG: only the last line has no end"),
                Err(error) => return Err(IntentError::store(error)),
            }
            shared.length += line.len() as u64;
        }
        shared.is_torn = shared.length < text.len() as u64;
        let folder = path.as_ref().parent().filter(|it| !it.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new("."))).map_err(IntentError::store)?;
        folder.sync_all().map_err(IntentError::store)?; // the file itself outlives a crash
        Ok(Self { shared: Arc::new(Mutex::new(shared)), retention })
    }

    async fn with<T, F>(&self, act: F) -> Result<T, IntentError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Shared) -> Result<T, IntentError> + Send + 'static,
    {
        let shared = self.shared.clone();
        let act = move || act(&mut shared.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(act).await.map_err(IntentError::store)?
    }

    /// Writes the line, unless the intent was forgotten: its name may have been begun again with another key.
    async fn note(&self, intent: &Intent, line: fn(String) -> Line) -> Result<(), IntentError> {
        let intent = intent.clone();
        self.with(move |shared| match shared.has(&intent) {
            true => shared.write(line(intent.name)),
            false => Ok(()),
        })
        .await
    }
}

impl Drop for Shared {
    /// A process that is just being started has a copy of the file, which would keep the lock for a moment.
    fn drop(&mut self) {
        drop(self.file.unlock());
    }
}

impl Shared {
    fn apply(&mut self, line: Line) {
        match line {
            Line::Begun { name, key, at_ms } => {
                let begun_at = UNIX_EPOCH + Duration::from_millis(at_ms);
                let intent = Intent { name: name.clone(), key, begun_at };
                self.intents.insert(name, (intent, false));
            }
            Line::Finished { name } => {
                if let Some((_, finished)) = self.intents.get_mut(&name) {
                    *finished = true;
                }
            }
            Line::Forgotten { name } => drop(self.intents.remove(&name)),
        }
    }

    /// Writes the line, over what an earlier write that failed has left.
    fn write(&mut self, line: Line) -> Result<(), IntentError> {
        let mut text = serde_json::to_vec(&line).map_err(IntentError::store)?;
        text.push(b'\n');
        self.mend()?;
        self.is_torn = true;
        let mut put = || {
            self.file.seek(SeekFrom::Start(self.length))?;
            self.file.write_all(&text)?;
            self.file.sync_data()
        };
        put().map_err(IntentError::store)?;
        self.is_torn = false;
        self.length += text.len() as u64;
        self.apply(line);
        Ok(())
    }

    /// Cuts off what a crash or a failed write has left. Until this succeeds no key is given out: after a crash the file could say
    /// something else.
    fn mend(&mut self) -> Result<(), IntentError> {
        if self.is_torn {
            self.file
                .set_len(self.length)
                .and_then(|()| self.file.sync_all())
                .map_err(IntentError::store)?;
            self.is_torn = false;
        }
        Ok(())
    }

    fn has(&self, intent: &Intent) -> bool {
        self.intents.get(&intent.name).is_some_and(|(found, _)| found.key == intent.key)
    }

    fn begin(&mut self, name: &str) -> Result<Intent, IntentError> {
        self.mend()?;
        if let Some((intent, _)) = self.intents.get(name) {
            return Ok(intent.clone());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let at_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.write(Line::Begun { name: name.to_owned(), key: new_key(), at_ms })?;
        let (intent, _) = &self.intents[name];
        Ok(intent.clone())
    }
}

impl IntentStore for FileIntentStore {
    async fn begin(&self, name: &str) -> Result<Intent, IntentError> {
        checked(name)?;
        let name = name.to_owned();
        self.with(move |shared| shared.begin(&name)).await?.within(self.retention)
    }

    async fn finish(&self, intent: &Intent) -> Result<(), IntentError> {
        self.note(intent, |name| Line::Finished { name }).await
    }

    async fn unknown(&self) -> Result<Vec<Intent>, IntentError> {
        let unknown = |shared: &mut Shared| {
            let open = shared.intents.values().filter(|(_, finished)| !finished);
            let mut open: Vec<_> = open.map(|(intent, _)| intent.clone()).collect();
            open.sort_by(|a, b| (a.begun_at, &a.name).cmp(&(b.begun_at, &b.name)));
            Ok(open)
        };
        self.with(unknown).await
    }

    async fn forget(&self, intent: &Intent) -> Result<(), IntentError> {
        self.note(intent, |name| Line::Forgotten { name }).await
    }
}
