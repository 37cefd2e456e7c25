//! The service's code, without protoc: the same as from
//!
//! ```proto
//! service Payments {
//!   rpc Pay(Order) returns (Payment);
//!   rpc History(Order) returns (stream Payment);
//! }
//! ```

use tonic_build::manual::{Builder, Method, Service};

fn method(name: &str, route: &str) -> tonic_build::manual::MethodBuilder {
    Method::builder()
        .name(name)
        .route_name(route)
        .input_type("crate::message::Order")
        .output_type("crate::message::Payment")
        .codec_path("tonic_prost::ProstCodec")
}

fn main() {
    let payments = Service::builder()
        .name("Payments")
        .package("shop")
        .method(method("pay", "Pay").build())
        .method(method("history", "History").server_streaming().build())
        .method(method("pay_all", "PayAll").client_streaming().build())
        .build();
    Builder::new().compile(&[payments]);
}
