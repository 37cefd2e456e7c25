//! What all requests share.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use pgonce::{Consumer, Overview, PgOnce, ScopeCounts};

use crate::access::Visitor;
use crate::cached::{Cached, Seen};
use crate::database::Database;
use crate::history::{self, Charts};
use crate::pages::health::{self, Finding};
use crate::problem::Problem;

/// Decides who a request comes from and what they may do.
pub(crate) type Decide = Arc<dyn Fn(&Parts) -> Visitor + Send + Sync>;

/// Counts stop here, and are then shown as "10,000+".
pub(crate) const COUNT_MAX: u32 = 10_000;
/// The counts of a scope stop here.
pub(crate) const SCOPE_COUNT_MAX: u32 = 1_000;
pub(crate) const SCOPES_PER_PAGE: u32 = 50;
/// How old a figure may be before it is read again.
const FRESH: Duration = Duration::from_secs(4);
/// Of what takes longer: the checks of the health page, and the history of a day.
const FRESH_RARE: Duration = Duration::from_secs(30);

pub(crate) struct App {
    pub(crate) schemas: Vec<Arc<Schema>>,
    pub(crate) decide: Decide,
}

/// One schema, and what is known of it.
pub(crate) struct Schema {
    pub(crate) once: PgOnce,
    pub(crate) name: String,
    pub(crate) database: Database,
    overview: Cached<(), Overview>,
    scopes: Cached<(String, String), Vec<ScopeCounts>>,
    consumers: Cached<(), Vec<Consumer>>,
    writes: Cached<(), bool>,
    findings: Cached<(), Vec<Finding>>,
    charts: Cached<(), Option<Charts>>,
}

impl App {
    pub(crate) fn new(database: &Database, schemas: &[PgOnce], decide: Decide) -> Self {
        let schema = |once: &PgOnce| Arc::new(Schema::new(once.clone(), database.clone()));
        Self { schemas: schemas.iter().map(schema).collect(), decide }
    }

    pub(crate) fn schema(&self, name: &str) -> Option<&Arc<Schema>> {
        self.schemas.iter().find(|schema| schema.name == name)
    }
}

impl Schema {
    fn new(once: PgOnce, database: Database) -> Self {
        Self {
            name: once.schema_name().as_str().to_owned(),
            once,
            database,
            overview: Cached::new(FRESH),
            scopes: Cached::new(FRESH),
            consumers: Cached::new(FRESH),
            writes: Cached::new(FRESH),
            findings: Cached::new(FRESH_RARE),
            charts: Cached::new(FRESH_RARE),
        }
    }

    /// After an action: the next page shows what it has changed.
    pub(crate) fn forget_figures(&self) {
        self.overview.forget();
        self.consumers.forget();
        self.scopes.forget();
    }

    pub(crate) async fn overview(self: &Arc<Self>) -> Seen<Overview> {
        let this = Arc::clone(self);
        let read = async move || {
            let mut tx = this.database.read().await?;
            Ok(this.once.overview(&mut tx, COUNT_MAX).await?)
        };
        self.overview.get((), read).await
    }

    /// The scopes after `after` that begin with `prefix`.
    pub(crate) async fn scopes(
        self: &Arc<Self>,
        prefix: &str,
        after: &str,
    ) -> Seen<Vec<ScopeCounts>> {
        let (this, page) = (Arc::clone(self), (prefix.to_owned(), after.to_owned()));
        let (prefix, after) = page.clone();
        let read = async move || {
            let mut tx = this.database.read().await?;
            let scopes =
                this.once.scopes(&mut tx, Some(&prefix), Some(&after), SCOPES_PER_PAGE + 1);
            Ok(scopes.await?)
        };
        self.scopes.get(page, read).await
    }

    pub(crate) async fn consumers(self: &Arc<Self>) -> Seen<Vec<Consumer>> {
        let this = Arc::clone(self);
        let read = async move || {
            let mut tx = this.database.read().await?;
            Ok(this.once.consumers(&mut tx).await?)
        };
        self.consumers.get((), read).await
    }

    /// Whether the database takes writes. Unknown counts as no.
    pub(crate) async fn takes_writes(self: &Arc<Self>) -> bool {
        let this = Arc::clone(self);
        let read = async move || {
            let mut tx = this.database.read().await?;
            Ok::<_, Problem>(this.once.takes_writes(&mut tx).await?)
        };
        self.writes.get((), read).await.value.is_some_and(|writes| *writes)
    }

    pub(crate) async fn findings(self: &Arc<Self>) -> Seen<Vec<Finding>> {
        let this = Arc::clone(self);
        self.findings.get((), async move || health::find(&this).await).await
    }

    pub(crate) async fn charts(self: &Arc<Self>) -> Seen<Option<Charts>> {
        let this = Arc::clone(self);
        self.charts.get((), async move || history::read(&this).await).await
    }
}
