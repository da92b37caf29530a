//! Listeners on sockets that somebody else has bound.

use super::super::bind::{bind_all, resolve};
use super::*;
use crate::config::Settings;
use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixListener, UnixStream};

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::net::{bind, listen};

fn settings() -> Settings {
    Settings::for_processors(1)
}

fn passed() -> Address {
    Address::Inherited("web".to_owned())
}

fn inherited(socket: impl Into<OwnedFd>) -> Listener {
    Listener::inherit(socket.into(), passed()).expect("it listens")
}

fn address(text: impl ToString) -> Address {
    text.to_string().parse().expect("it is an address")
}

fn takes_one(listener: &Listener) -> Option<Peer> {
    match listener.accept().expect("accept") {
        Accepted::Connection(_, peer) => Some(peer),
        Accepted::Nobody => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_tcp_socket_is_taken_over_and_does_not_block() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let local = socket.local_addr().unwrap();
    let mut listener = inherited(socket);
    assert!(fcntl_getfl(&listener).unwrap().contains(OFlags::NONBLOCK));
    assert_eq!(listener.local_address(), Some(local));
    assert_eq!(listener.to_string(), local.to_string());
    assert_eq!(*listener.asked(), passed());
    listener.configure(Duration::from_secs(1), None).unwrap();
    assert_eq!(takes_one(&listener), None);
    let client = TcpStream::connect(local).unwrap();
    let peer = client.local_addr().unwrap();
    assert_eq!(takes_one(&listener), Some(Peer::Inet(peer)));
}

#[test]
fn the_file_of_a_unix_socket_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut listener = inherited(UnixListener::bind(&path).unwrap());
    assert_eq!(listener.to_string(), format!("unix:{}", path.display()));
    assert_eq!(listener.local_address(), None);
    listener.configure(Duration::from_secs(1), None).unwrap();
    assert_eq!(takes_one(&listener), None);
    let _client = UnixStream::connect(&path).unwrap();
    assert_eq!(takes_one(&listener), Some(Peer::Unix));
    drop(listener);
    assert!(path.exists());
    // The file of a socket that the server has bound is removed with its listener.
    fs::remove_file(&path).unwrap();
    drop(bind_all(&Address::Unix(path.clone()), &settings()).unwrap());
    assert!(!path.exists());
}

#[test]
fn what_does_not_listen_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let file = tempfile::tempfile().unwrap();
    for (descriptor, what) in [
        (OwnedFd::from(client), "a connected socket"),
        (datagrams.into(), "a socket, but not a stream"),
        (file.into(), "not a socket"),
    ] {
        let error = Listener::inherit(descriptor, passed()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot listen on fd:web: it is {what}")
        );
    }
}

#[test]
fn an_address_is_matched_by_the_socket_that_it_would_make() {
    let listener = inherited(TcpListener::bind("127.0.0.1:0").unwrap());
    let port = listener.local_address().unwrap().port();
    let other = if port == 1 { 2 } else { 1 };
    assert!(listener.matches(&address(format!("127.0.0.1:{port}"))));
    for text in [
        format!("127.0.0.1:{other}"),
        format!("127.0.0.2:{port}"),
        format!("[::1]:{port}"),
        format!("0.0.0.0:{port}"),
        format!(":{port}"),
        format!("localhost:{port}"),
        "127.0.0.1:0".to_owned(),
        ":0".to_owned(),
        "unix:/socket".to_owned(),
        "fd:web".to_owned(),
    ] {
        assert!(!listener.matches(&address(&text)), "{text}");
    }
    let resolved = resolve("localhost", port).unwrap();
    assert!(
        resolved
            .into_iter()
            .any(|address| listener.matches(&Address::Inet(address)))
    );
    let own = bind_all(&address("127.0.0.1:0"), &settings()).unwrap();
    let local = own[0].local_address().unwrap();
    assert!(own[0].matches(&Address::Inet(local)));
    assert!(!own[0].matches(&address("127.0.0.1:0")));
}

#[test]
fn every_address_is_matched_by_a_socket_on_all_of_them() {
    let own = bind_all(&Address::Any(0), &settings()).unwrap();
    let local = own[0].local_address().unwrap();
    assert!(own[0].matches(&Address::Any(local.port())));
    assert!(own[0].matches(&Address::Inet(local)));
    drop(own);

    let listener = inherited(TcpListener::bind("0.0.0.0:0").unwrap());
    let port = listener.local_address().unwrap().port();
    assert!(listener.matches(&address(format!("0.0.0.0:{port}"))));
    assert_eq!(listener.matches(&Address::Any(port)), !has_ipv6());
}

#[test]
fn a_socket_for_ipv6_alone_is_not_one_for_every_address() {
    if !has_ipv6() {
        return;
    }
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET6, SocketType::STREAM, flags, None).unwrap();
    sockopt::set_ipv6_v6only(&socket, true).unwrap();
    bind(&socket, &Address::any(0)).unwrap();
    listen(&socket, 1).unwrap();
    let listener = inherited(socket);
    let local = listener.local_address().unwrap();
    assert!(!listener.matches(&Address::Any(local.port())));
    assert!(!listener.matches(&Address::Inet(local)));
}

#[test]
fn a_unix_address_is_matched_by_its_path_whoever_has_bound_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let wanted = Address::Unix(path.clone());
    let elsewhere = Address::Unix(directory.path().join("other"));
    let own = bind_all(&wanted, &settings()).unwrap().remove(0);
    assert!(own.matches(&wanted) && !own.matches(&elsewhere));
    drop(own);
    let listener = inherited(UnixListener::bind(&path).unwrap());
    assert!(listener.matches(&wanted) && !listener.matches(&elsewhere));

    let name = UnixAddress::from_abstract_name(path.as_os_str().as_encoded_bytes()).unwrap();
    let listener = inherited(UnixListener::bind_addr(&name).unwrap());
    assert!(!listener.matches(&wanted));
    assert_eq!(listener.to_string(), format!("unix:@{}", path.display()));
}
