//! The roles of src/docs/security.md, created by the statements on that page.

use pgonce::{Failure, Lease, Operation, Work};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection, PgPool};

use super::db::{PATIENCE, TestDb};

pub const PAGE: &str = include_str!("../../../src/docs/security.md");
/// Two of them are tenants, which the page's script does not create.
const TENANTS: [&str; 2] = ["acme", "globex"];
const ROLES: [&str; 9] = [
    "pgonce_owner",
    "migrator",
    "app",
    "operator",
    "reaper",
    "auditor",
    "viewer",
    TENANTS[0],
    TENANTS[1],
];

/// The statements of a section of the page, for this schema and this test's roles.
pub fn statements(db: &TestDb, section: &str) -> Vec<String> {
    let (_, section) = PAGE.split_once(&format!("\n## {section}\n")).expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sql\n").skip(1).map(|block| block.split("```").next().unwrap());
    blocks
        .map(|block| {
            let mut words = Vec::new();
            for line in block.lines() {
                let line = line.split("--").next().unwrap();
                for word in line.split_inclusive(|c: char| !(c.is_alphanumeric() || c == '_')) {
                    let name = word.trim_end_matches(|c: char| !(c.is_alphanumeric() || c == '_'));
                    words.push(match name {
                        "pgonce" => word.replace("pgonce", &db.schema),
                        _ if ROLES.contains(&name) => word.replace(name, &role(db, name)),
                        _ => word.to_owned(),
                    });
                }
                words.push("\n".to_owned());
            }
            words.concat()
        })
        .collect()
}

pub fn role(db: &TestDb, name: &str) -> String {
    format!("{name}_{}", db.schema)
}

pub fn as_role(db: &TestDb, name: &str) -> PgConnectOptions {
    db.options.clone().username(&role(db, name))
}

pub async fn conn_as(db: &TestDb, name: &str) -> PgConnection {
    PgConnection::connect_with(&as_role(db, name)).await.unwrap()
}

pub fn pool_as(db: &TestDb, name: &str) -> PgPool {
    PgPoolOptions::new().max_connections(5).connect_lazy_with(as_role(db, name))
}

/// A schema with the roles and their privileges.
pub async fn with_roles() -> TestDb {
    let db = TestDb::new().await;
    for name in TENANTS {
        db.execute(&format!("create role {} login", role(&db, name))).await;
    }
    let [create, grant, ..] = &statements(&db, "Roles")[..] else { panic!("two blocks") };
    db.execute(create).await;
    db.execute(grant).await;
    db.execute(&format!("grant insert, select on {{}}.effect to {}", role(&db, "app"))).await;
    db
}

/// A schema with a role for each of two tenants, which sees only the tenant's scopes.
pub async fn with_tenants() -> TestDb {
    let db = with_roles().await;
    let [app, acme, globex] = ["app", "acme", "globex"].map(|name| role(&db, name));
    db.execute(&format!("grant {app} to {acme}, {globex}")).await;
    db.execute(&statements(&db, "Row-level security")[0]).await;
    db
}

pub fn lease() -> Lease {
    Lease::new(PATIENCE).unwrap()
}

/// Work that does a step and fails in its first attempt, and finishes in its second.
pub async fn step_and_fail(db: &TestDb, pool: &PgPool, op: &Operation) -> bool {
    let work = async |work: &mut Work| {
        let attempt = work.attempt();
        work.step("charge", async || Ok::<_, Failure>(7)).await?;
        if attempt == 1 { Err(Failure::from("later")) } else { Ok(1) }
    };
    db.once.run_leased(pool, op, lease(), work).await.is_ok()
}
