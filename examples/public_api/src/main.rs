//! `cargo run`: an interface on one port, and a page that calls it on another, which is another origin.
//!
//! Uses `DATABASE_URL`, or a temporary PostgreSQL. Prints the addresses as JSON, and ends with its standard input.

use axum::Router;
use axum::response::Html;
use axum::routing::get;
use pgonce::PgOnce;
use pgonce_testing::{Database, Options};
use serde_json::json;
use sqlx::PgPool;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let database = Database::from_env(&Options::new()).await?;
    let pool = PgPool::connect_with(database.connect_options()).await?;
    let once = PgOnce::new();
    once.migrate(&mut *pool.acquire().await?).await?;
    sqlx::raw_sql(public_api::SCHEMA).execute(&pool).await?;

    let (api, page) =
        (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    let api_url = format!("http://{}", api.local_addr()?);
    let page_url = format!("http://{}", page.local_addr()?);
    let served = public_api::router(once, pool, &page_url)?;
    let html = include_str!("page.html").replace("API_URL", &api_url);
    let script = get(|| async { ([("content-type", "text/javascript")], include_str!("page.js")) });
    let pages = Router::new().route("/", get(|| async { Html(html) })).route("/page.js", script);
    println!("{}", json!({ "api": api_url, "page": page_url }));
    let end = async { tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await };
    tokio::select! {
        ended = axum::serve(api, served).into_future() => ended?,
        ended = axum::serve(page, pages).into_future() => ended?,
        ended = end => drop(ended?),
    }
    database.stop().await;
    Ok(())
}
