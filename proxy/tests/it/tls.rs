//! HTTPS with real certificates, handshakes and clients (openssl, curl, rustls).

mod browser;
pub(crate) mod certificates;
pub(crate) mod clients;
mod exchanges;
mod floods;
mod fuzz;
mod handshakes;
mod redirects;
mod reloading;
mod tickets;
mod under_load;
