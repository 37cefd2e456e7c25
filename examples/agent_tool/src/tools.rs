//! The tools. A tool's key comes from the arguments that name the effect, here the order; never from the call's id,
//! which is another one each time the model calls again.

use std::time::Duration;

use pgonce::{
    Error, Fingerprint, Key, Lease, OnLapse, Operation, PgOnce, Policy, Scope, Step, Work,
};
use rmcp::handler::server::router::tool::ToolRouter;
use rmcp::handler::server::wrapper::Parameters;
use rmcp::model::CallToolResult;
use rmcp::{ErrorData, ServerHandler, tool, tool_handler, tool_router};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};

use crate::answer::answer;
use crate::provider::Provider;

/// Longer than an agent comes back to a task.
const REMEMBERED: Duration = Duration::from_secs(90 * 86_400);

#[derive(Debug, Clone)]
pub(crate) struct Tools {
    once: PgOnce,
    pool: PgPool,
    user: String,
    provider: Provider,
    lease: Lease,
    tool_router: ToolRouter<Self>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Invoice {
    /// The order's number, as the user's system has it. One invoice is made for an order.
    order: String,
    cents: i64,
    /// For the reader of the invoice. If you call again, the first note stays.
    note: Option<String>,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Charge {
    /// The order's number, as the user's system has it. It is charged once.
    order: String,
    cents: i64,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Letter {
    /// The order's number, as the user's system has it. One letter is sent for an order.
    order: String,
    text: String,
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for Tools {}

#[tool_router(router = tool_router)]
impl Tools {
    pub(crate) fn new(
        once: PgOnce,
        pool: PgPool,
        user: String,
        provider: Provider,
        lease: Lease,
    ) -> Self {
        Self { once, pool, user, provider, lease, tool_router: Self::tool_router() }
    }

    /// The effect is in this database, so `run` is enough. The note is free words, which differ from call to call: it
    /// is in neither the key nor the fingerprint.
    #[tool(
        description = "Makes the invoice for an order. Safe to call again with the same arguments."
    )]
    async fn create_invoice(
        &self,
        Parameters(invoice): Parameters<Invoice>,
    ) -> Result<CallToolResult, ErrorData> {
        let cents = positive(invoice.cents)?;
        let op = self.operation("tools.create_invoice", &invoice.order, &cents)?;
        let insert = async |tx: &mut PgConnection| {
            let insert = "insert into invoice (user_id, order_id, cents, note) values ($1, $2, $3, $4) returning id";
            let insert = sqlx::query_scalar::<_, i64>(insert).bind(&self.user).bind(&invoice.order);
            insert.bind(cents).bind(&invoice.note).fetch_one(tx).await
        };
        Ok(answer("invoice", self.once.run(&self.pool, &op, insert).await))
    }

    /// The provider takes keys, so an attempt after a crash charges under the same key.
    #[tool(
        description = "Charges the user's card for an order. Safe to call again with the same arguments."
    )]
    async fn charge_card(
        &self,
        Parameters(charge): Parameters<Charge>,
    ) -> Result<CallToolResult, ErrorData> {
        let cents = positive(charge.cents)?;
        let op = self.operation("tools.charge_card", &charge.order, &cents)?;
        let work = async |work: &mut Work| {
            let key = work.derived_key("charge");
            let step = Step::new("charge").made_from(&cents)?;
            let receipt: String =
                work.step(step, async || self.provider.charge(&key, cents).await).await?;
            let insert = "insert into charge (user_id, order_id, receipt) values ($1, $2, $3)";
            let insert = sqlx::query(insert).bind(&self.user).bind(&charge.order).bind(&receipt);
            insert.execute(work.last_tx().await?).await?;
            Ok::<_, pgonce::Failure>(receipt)
        };
        Ok(answer("receipt", self.once.run_leased(&self.pool, &op, self.lease, work).await))
    }

    /// The letter service takes no keys. After a crash, a person decides.
    #[tool(
        description = "Sends a letter about an order. Safe to call again with the same arguments."
    )]
    async fn send_letter(
        &self,
        Parameters(letter): Parameters<Letter>,
    ) -> Result<CallToolResult, ErrorData> {
        let op = self.operation("tools.send_letter", &letter.order, &())?;
        let op = op.policy(policy()?.on_lapse(OnLapse::Hold));
        let work = async |work: &mut Work| {
            let letter: String =
                work.step("letter", async || self.provider.send_letter(&letter.text).await).await?;
            Ok::<_, pgonce::Failure>(letter)
        };
        Ok(answer("letter", self.once.run_leased(&self.pool, &op, self.lease, work).await))
    }

    /// One operation per user, tool and order. `same` are the arguments that must not change in a repeated call.
    fn operation<T: Serialize>(
        &self,
        tool: &str,
        order: &str,
        same: &T,
    ) -> Result<Operation, ErrorData> {
        let op = Operation::new(Scope::of([self.user.as_str(), tool]), Key::derive([order]));
        let op = op.and_then(|op| Ok(op.fingerprint(Fingerprint::of_json(same)?)));
        Ok(op.map_err(|error| bad(&error))?.policy(policy()?))
    }
}

fn policy() -> Result<Policy, ErrorData> {
    Policy::new().retention(REMEMBERED).map_err(|error| bad(&error))
}

fn positive(cents: i64) -> Result<i64, ErrorData> {
    let bad = || ErrorData::invalid_params("cents must be 1 or more", None);
    if cents < 1 { Err(bad()) } else { Ok(cents) }
}

fn bad(error: &Error) -> ErrorData {
    ErrorData::invalid_params(error.to_string(), None)
}
