//! Message ids that the database's encoding cannot hold.

use sqlx::{PgConnection, PgPool};

use super::Inbox;
use crate::checkout::Checkout;
use crate::error::{Error, Result, cannot_hold, database};
use crate::once::get;
use crate::operation::Operation;

impl Inbox {
    /// Refuses those ids that the database's encoding cannot hold, so that they do no harm to the others. Costs a round
    /// trip where there are ids that are not ASCII, which every encoding holds.
    pub(super) async fn refuse_untranslatable(
        &self,
        conn: &mut PgConnection,
        ops: &mut [Result<Operation>],
    ) -> Result<()> {
        let is_asked =
            |op: &Result<Operation>| op.as_ref().is_ok_and(|op| !op.key().as_str().is_ascii());
        let asked: Vec<&[u8]> = ops
            .iter()
            .filter(|op| is_asked(op))
            .flatten()
            .map(|op| op.key().as_str().as_bytes())
            .collect();
        if asked.is_empty() {
            return Ok(());
        }
        let row = sqlx::query(self.once.statements.holds.clone())
            .bind(asked)
            .fetch_one(conn)
            .await
            .map_err(database)?;
        let encoding: &str = get(&row, "encoding")?;
        let holds: Vec<bool> = get(&row, "holds")?;
        for (op, holds) in ops.iter_mut().filter(|op| is_asked(op)).zip(holds) {
            if !holds {
                *op = Err(Error::invalid(cannot_hold("key", Some(encoding))));
            }
        }
        Ok(())
    }

    /// Why the message can never be handled here, if the database's encoding cannot hold its id. Otherwise it is not
    /// the message's fault that something could not be held: it is the consumer's name.
    pub(super) async fn untranslatable(
        &self,
        pool: &PgPool,
        op: &Operation,
    ) -> Result<Option<String>> {
        let mut tx = Checkout::look(pool).await?;
        let mut ops = [Ok(op.clone())];
        let asked = self.refuse_untranslatable(&mut tx, &mut ops).await;
        tx.rollback().await;
        asked?;
        let [op] = ops;
        Ok(op.err().map(|error| error.to_string()))
    }
}
