//! A PostgreSQL to play with: `cargo run --example throwaway`.
//!
//! Prints its URL and goes away when its standard input ends or on Ctrl-C.

use pgonce_testing::{Options, Throwaway};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Throwaway::start(&Options::new()).await?;
    println!("{}", server.url());
    eprintln!("psql '{}'", server.url());
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
    server.stop().await;
    Ok(())
}
