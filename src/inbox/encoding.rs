//! Message ids that the database's encoding cannot represent.

use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool};

use super::Inbox;
use crate::client::get;
use crate::error::{Error, Result, cannot_hold, database};
use crate::operation::Operation;
use crate::transactional::OwnedTransaction;

impl Inbox {
    /// Refuses the ids that the database's encoding cannot represent, so that they do not harm the others. Costs a
    /// round trip if an id is not ASCII; every encoding has ASCII.
    pub(super) async fn refuse_untranslatable(
        &self,
        conn: &mut PgConnection,
        ops: &mut [Result<Operation>],
    ) -> Result<()> {
        let asked = ids_to_ask(ops);
        if asked.is_empty() {
            return Ok(());
        }
        let holds = sqlx::query(self.once.statements.holds.clone()).bind(asked);
        let row = holds.fetch_one(conn).await.map_err(database)?;
        refuse(ops, &row)
    }

    /// Why the message can never be handled here, if the database's encoding cannot represent its id. None: the
    /// consumer's name is to blame, not the message.
    pub(super) async fn untranslatable(
        &self,
        pool: &PgPool,
        op: &Operation,
    ) -> Result<Option<String>> {
        let mut ops = [Ok(op.clone())];
        let rows = {
            let asked = ids_to_ask(&ops);
            let holds = || sqlx::query(self.once.statements.holds.clone()).bind(asked.clone());
            OwnedTransaction::look(pool, holds).await?
        };
        for row in &rows {
            refuse(&mut ops, row)?;
        }
        let [op] = ops;
        Ok(op.err().map(|error| error.to_string()))
    }
}

fn is_asked(op: &Result<Operation>) -> bool {
    op.as_ref().is_ok_and(|op| !op.key().as_str().is_ascii())
}

fn ids_to_ask(ops: &[Result<Operation>]) -> Vec<&[u8]> {
    let asked = ops.iter().filter(|op| is_asked(op)).flatten();
    asked.map(|op| op.key().as_str().as_bytes()).collect()
}

fn refuse(ops: &mut [Result<Operation>], row: &PgRow) -> Result<()> {
    let encoding: &str = get(row, "encoding")?;
    let holds: Vec<bool> = get(row, "holds")?;
    for (op, holds) in ops.iter_mut().filter(|op| is_asked(op)).zip(holds) {
        if !holds {
            *op = Err(Error::invalid(cannot_hold("key", Some(encoding))));
        }
    }
    Ok(())
}
