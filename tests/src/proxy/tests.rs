//! Faults are what they are called.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::*;

/// Long enough for anything to arrive that is on its way.
const MOMENT: Duration = Duration::from_millis(100);

/// A server that answers with what it is sent, and tells what that was: `None` is the end of a connection.
async fn echo() -> (String, mpsc::Receiver<io::Result<Option<Vec<u8>>>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (tell, told) = mpsc::channel(1_000);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                loop {
                    let read = stream.read(&mut buffer).await;
                    let is_over = !matches!(read, Ok(count) if count > 0);
                    let said = read.map(|count| (count > 0).then(|| buffer[..count].to_vec()));
                    let answer = said.as_ref().ok().cloned().flatten().unwrap_or_default();
                    // The test may have heard enough.
                    let _ = tell.send(said).await;
                    // A reset is told once, to whoever asks first.
                    if let Err(error) = stream.write_all(&answer).await {
                        let _ = tell.send(Err(error)).await;
                        return;
                    }
                    if is_over {
                        return;
                    }
                }
            });
        }
    });
    (address, told)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.address()).await.unwrap()
}

async fn ask(stream: &mut TcpStream, text: &str) -> io::Result<String> {
    stream.write_all(text.as_bytes()).await?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8(answer).unwrap())
}

async fn is_silent(stream: &mut TcpStream) -> bool {
    timeout(MOMENT, stream.read_u8()).await.is_err()
}

#[tokio::test]
async fn it_passes_what_it_is_given() {
    let (server, _told) = echo().await;
    let proxy = Proxy::start(&server).await;
    let mut stream = connect(&proxy).await;
    assert_eq!(ask(&mut stream, "hello").await.unwrap(), "hello");
    assert_eq!(proxy.passed(Direction::ToServer), 5);
    assert_eq!(proxy.connections(), 1);
    let large = "x".repeat(3 << 20);
    let (mut reads, mut writes) = stream.split();
    let mut answer = vec![0; large.len()];
    let (read, written) = tokio::join!(reads.read_exact(&mut answer), writes.write_all(large.as_bytes()));
    assert!(read.is_ok() && written.is_ok() && answer == large.as_bytes());
}

#[tokio::test]
async fn the_end_of_a_connection_passes_too() {
    let (server, mut told) = echo().await;
    let proxy = Proxy::start(&server).await;
    let mut stream = connect(&proxy).await;
    ask(&mut stream, "x").await.unwrap();
    drop(stream);
    assert_eq!(told.recv().await.unwrap().unwrap(), Some(b"x".to_vec()));
    assert_eq!(told.recv().await.unwrap().unwrap(), None);
}

#[tokio::test]
async fn a_cut_is_a_reset_at_both_ends() {
    let (server, mut told) = echo().await;
    let proxy = Proxy::start(&server).await;
    let mut stream = connect(&proxy).await;
    ask(&mut stream, "x").await.unwrap();
    told.recv().await.unwrap().unwrap();
    proxy.cut();
    assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(told.recv().await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let mut next = connect(&proxy).await;
    assert_eq!(ask(&mut next, "y").await.unwrap(), "y", "only what was open is cut");
}

#[tokio::test]
async fn delays_add_up_and_keep_the_order() {
    let (server, _told) = echo().await;
    let proxy = Proxy::start(&server).await;
    let mut stream = connect(&proxy).await;
    proxy.set_both(Flow::Delay { delay: MOMENT, jitter: MOMENT });
    let since = Instant::now();
    assert_eq!(ask(&mut stream, "one").await.unwrap(), "one");
    assert!(since.elapsed() >= 2 * MOMENT);
    for part in ["a", "b", "c"] {
        stream.write_all(part.as_bytes()).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"abc");
}

#[tokio::test]
async fn a_throttled_connection_is_slow() {
    let (server, _told) = echo().await;
    let proxy = Proxy::start(&server).await;
    let mut stream = connect(&proxy).await;
    proxy.set(Direction::ToServer, Flow::Throttle { bytes_per_second: 10_000 });
    let since = Instant::now();
    ask(&mut stream, &"x".repeat(3_000)).await.unwrap();
    assert!(since.elapsed() >= Duration::from_millis(290));
}

#[tokio::test]
async fn a_black_hole_takes_one_direction_and_gives_back_in_time() {
    let (server, mut told) = echo().await;
    let proxy = Proxy::start(&server).await;
    let mut stream = connect(&proxy).await;
    ask(&mut stream, "x").await.unwrap();
    told.recv().await.unwrap().unwrap();
    proxy.set(Direction::ToClient, Flow::BlackHole);
    stream.write_all(b"y").await.unwrap();
    assert_eq!(told.recv().await.unwrap().unwrap(), Some(b"y".to_vec()), "the other direction flows");
    assert!(is_silent(&mut stream).await);
    proxy.set(Direction::ToServer, Flow::BlackHole);
    stream.write_all(b"z").await.unwrap();
    assert!(timeout(MOMENT, told.recv()).await.is_err());
    proxy.pass();
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"yz", "what was sent meanwhile comes late");
}

#[tokio::test]
async fn a_half_closed_connection_ends_in_one_direction() {
    let (server, mut told) = echo().await;
    let proxy = Proxy::start(&server).await;
    let mut stream = connect(&proxy).await;
    ask(&mut stream, "x").await.unwrap();
    told.recv().await.unwrap().unwrap();
    proxy.half_close(Direction::ToClient);
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    stream.write_all(b"y").await.unwrap();
    assert_eq!(told.recv().await.unwrap().unwrap(), Some(b"y".to_vec()));
}

#[tokio::test]
async fn refused_is_refused_until_it_passes_again() {
    let (server, _told) = echo().await;
    let proxy = Proxy::start(&server).await;
    let mut stream = connect(&proxy).await;
    ask(&mut stream, "x").await.unwrap();
    proxy.refuse();
    let is_refused = async || {
        TcpStream::connect(proxy.address()).await.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
    };
    while !is_refused().await {}
    assert_eq!(ask(&mut stream, "y").await.unwrap(), "y", "what was open goes on");
    proxy.pass();
    while TcpStream::connect(proxy.address()).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_trap_cuts_after_so_many_bytes() {
    let (server, mut told) = echo().await;
    let proxy = Proxy::start(&server).await;
    let mut stream = connect(&proxy).await;
    let trap = proxy.trap(Direction::ToServer, Sign::Bytes(4), Then::Cut);
    stream.write_all(b"abcdefgh").await.unwrap();
    trap.sprung().await;
    assert_eq!(told.recv().await.unwrap().unwrap(), Some(b"abcd".to_vec()));
    let end = told.recv().await.unwrap();
    assert!(end.is_err(), "{end:?}");
}

#[tokio::test]
async fn of_two_traps_with_one_sign_each_springs_in_its_turn() {
    let (server, mut told) = echo().await;
    let proxy = Proxy::start(&server).await;
    let one = proxy.trap(Direction::ToServer, Sign::Bytes(1), Then::Hold);
    let two = proxy.trap(Direction::ToServer, Sign::Bytes(1), Then::Hold);
    let mut stream = connect(&proxy).await;
    stream.write_all(b"abc").await.unwrap();
    one.sprung().await;
    stream.write_all(b"def").await.unwrap();
    two.sprung().await;
    assert!(timeout(MOMENT, told.recv()).await.is_err());
    proxy.release();
    assert_eq!(told.recv().await.unwrap().unwrap().unwrap()[..3], *b"abc");
}

#[tokio::test]
async fn a_trap_cuts_after_a_request_has_left() {
    let (server, mut told) = echo().await;
    let proxy = Proxy::start(&server).await;
    let mut stream = connect(&proxy).await;
    ask(&mut stream, "hello").await.unwrap();
    told.recv().await.unwrap().unwrap();
    let trap = proxy.trap(Direction::ToServer, Sign::Contains(b"COMMIT".to_vec()), Then::Cut);
    // Across two reads.
    stream.write_all(b"COM").await.unwrap();
    assert_eq!(told.recv().await.unwrap().unwrap(), Some(b"COM".to_vec()));
    stream.write_all(b"MIT").await.unwrap();
    trap.sprung().await;
    assert_eq!(told.recv().await.unwrap().unwrap(), Some(b"MIT".to_vec()));
    let mut rest = Vec::new();
    assert!(stream.read_to_end(&mut rest).await.is_err());
    assert!(rest.len() <= 3, "the answer to the last request is lost");
}

#[tokio::test]
async fn a_trap_swallows_a_request() {
    let (server, mut told) = echo().await;
    let proxy = Proxy::start(&server).await;
    let mut stream = connect(&proxy).await;
    let trap = proxy.trap(Direction::ToServer, Sign::Contains(b"x".to_vec()), Then::Swallow);
    stream.write_all(b"x").await.unwrap();
    trap.sprung().await;
    assert!(told.recv().await.unwrap().is_err(), "nothing but the reset arrives");
}

#[tokio::test]
async fn a_held_request_is_delivered_late_although_its_sender_is_gone() {
    let (server, mut told) = echo().await;
    let proxy = Proxy::start(&server).await;
    let mut stream = connect(&proxy).await;
    let trap = proxy.trap(Direction::ToServer, Sign::Contains(b"settle".to_vec()), Then::Hold);
    stream.write_all(b"settle").await.unwrap();
    trap.sprung().await;
    stream.set_zero_linger().unwrap();
    drop(stream);
    let mut next = connect(&proxy).await;
    assert_eq!(ask(&mut next, "settle again").await.unwrap(), "settle again", "a trap springs once");
    assert_eq!(told.recv().await.unwrap().unwrap(), Some(b"settle again".to_vec()));
    proxy.release();
    assert_eq!(told.recv().await.unwrap().unwrap(), Some(b"settle".to_vec()));
    assert_eq!(ask(&mut next, "and on").await.unwrap(), "and on");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_no_connection() {
    let proxy = Proxy::start("127.0.0.1:1").await;
    let mut stream = connect(&proxy).await;
    assert_eq!(stream.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn only_the_place_changes_in_a_url() {
    let proxy = Proxy::start("127.0.0.1:1").await;
    let at = proxy.address();
    assert_eq!(proxy.url("postgres://a:b@c:1/d?e=f"), format!("postgres://a:b@{at}/d?e=f"));
    assert_eq!(proxy.url("redis://c:1"), format!("redis://{at}"));
}

#[tokio::test]
async fn a_redirected_proxy_leads_new_connections_to_another_server() {
    let ((first, mut at_first), (second, mut at_second)) = (echo().await, echo().await);
    let proxy = Proxy::start(&first).await;
    let mut before = connect(&proxy).await;
    ask(&mut before, "one").await.unwrap();
    proxy.lead_to(&second);
    ask(&mut before, "two").await.unwrap();
    ask(&mut connect(&proxy).await, "three").await.unwrap();
    assert_eq!(at_first.recv().await.unwrap().unwrap(), Some(b"one".to_vec()));
    assert_eq!(at_first.recv().await.unwrap().unwrap(), Some(b"two".to_vec()));
    assert_eq!(at_second.recv().await.unwrap().unwrap(), Some(b"three".to_vec()));
}
