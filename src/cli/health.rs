//! `skep health`: asks the running tracker for `/livez`, for scripts and an image's HEALTHCHECK.
//!
//! `skep probe` cannot do that: with registered torrents, passkeys or trusted proxies, a tracker
//! that is well refuses a probe. The admin listener serves `/livez` to everybody, in every mode.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::{Request, StatusCode};

use super::admin::AdminAddress;
use super::admin_client::{AdminRequestError, RequestLimits, Server, exchange_with, reachable};
use super::{Settings, complain, print};
use crate::client::tls::Trust;
use crate::config::ConfigError;
use crate::server::{self, StartError};

const EXAMPLES: &str = "\
Examples:
  skep health                                the tracker on this host
  skep health --config /etc/skep/skep.toml   the one with the settings in that file
  skep health --admin [::1]:7070             at this address; no settings are read

A tracker that serves keeps the address of its admin listener in the state directory (that of
server.state_dir, STATE_DIRECTORY or XDG's rules, else /var/lib/skep). Without such a file, or if
admin.listen of the settings (--config, SKEP__ADMIN__LISTEN) is neither the default nor on port 0,
the address is admin.listen. A wildcard address is asked on loopback.

The tracker is well while every worker's loop makes progress (/livez), also under load, during a
drain, and before the swarms are restored. Whether clients are served is for skep probe, whether new
ones should be sent is /readyz.

Exit codes: 0 the tracker is well, 1 it is not, or there is none, 2 invalid usage or settings.";

/// Limits of the request: half of the five seconds that the image's HEALTHCHECK allows, for the
/// connect and again for the response. That listener is on this host, without a TLS handshake.
const LIMITS: RequestLimits =
    RequestLimits { step: Duration::from_millis(2200), body_bytes: 16 * 1024 };

/// Arguments of `health`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    /// The tracker's admin listener, in place of the one in the settings
    #[arg(long, value_name = "ADDRESS:PORT|URL")]
    admin: Option<AdminAddress>,
    /// Read server.state_dir and admin.listen from this TOML file
    #[arg(long, value_name = "FILE", conflicts_with = "admin")]
    config: Option<PathBuf>,
    /// Trust only the certificates in this PEM file (https)
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    ca: Option<PathBuf>,
    /// Accept any certificate (https)
    #[arg(long)]
    insecure: bool,
}

/// Asks the tracker, and prints the verdict.
pub(super) fn run(options: &Options) -> ExitCode {
    let checked = listener(options).and_then(|server| {
        check(&server).map_err(StartError::Failed)?;
        print(&format!("skep at {} is well\n", server.authority))
    });
    match checked {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// The admin listener.
fn listener(options: &Options) -> Result<Server, StartError> {
    if let Some(address) = &options.admin {
        let server = address.server(Trust::of(options.ca.as_deref(), options.insecure));
        return Ok(server.map_err(|error| ConfigError::at("--admin", error.to_string()))?);
    }
    let settings = Settings { config: options.config.clone(), ..Settings::default() };
    let config = settings.source()?.load()?;
    let serving = server::serving_listener(&config).map(|it| it.address);
    let listen = serving.unwrap_or(config.admin.listen);
    if listen.port() == 0 {
        return Err(StartError::Failed(
            "the kernel chooses the port of admin.listen, and no tracker that serves has its \
             address in the state directory; remedy: name it with --admin, as in the tracker's \
             ready line"
                .into(),
        ));
    }
    Ok(Server { authority: reachable(listen).to_string(), tls: None })
}

/// Asks `/livez`.
///
/// # Errors
/// Why the tracker is not well, for the operator.
fn check(server: &Server) -> Result<(), String> {
    let authority = &server.authority;
    let stranger = || format!("the program at {authority} is not skep's admin listener");
    let response = exchange_with(server, Request::get("/livez"), Vec::new(), LIMITS);
    let response = response.map_err(|error| match error.error {
        AdminRequestError::NotHttp => stranger(),
        AdminRequestError::Connection(error) => format!(
            "no skep responds at {authority}: {error}; remedy: start it, or name its settings file \
             with --config FILE or its admin listener with --admin"
        ),
    })?;
    let reason = response.body().trim_ascii().escape_ascii().to_string();
    match response.status() {
        StatusCode::OK if reason == "ok" => Ok(()),
        StatusCode::SERVICE_UNAVAILABLE => {
            Err(format!("skep at {authority} is not well: {reason}"))
        }
        _ => Err(stranger()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;

    #[test]
    fn addresses_and_urls_are_taken_alike() {
        for (text, authority) in [
            ("127.0.0.1:7070", "127.0.0.1:7070"),
            ("http://127.0.0.1:7070/", "127.0.0.1:7070"),
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("localhost:6970", "localhost:6970"),
        ] {
            let address = text.parse::<AdminAddress>().map(|it| it.authority);
            assert_eq!(address.as_deref(), Ok(authority), "{text}");
        }
        for bad in ["6970", "localhost", "127.0.0.1:0", "a:99999", "a b:1", ":1"] {
            assert!(bad.parse::<AdminAddress>().is_err(), "{bad}");
        }
    }

    /// The verdict on a listener with this response.
    fn verdict(response: &'static str) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let responding = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let lines = BufReader::new(&stream).lines().map(Result::unwrap);
            let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
            stream.write_all(response.as_bytes()).unwrap();
            head
        });
        let verdict = check(&Server { authority, tls: None });
        assert_eq!(responding.join().unwrap()[0], "GET /livez HTTP/1.1");
        verdict
    }

    #[test]
    fn only_a_tracker_that_is_well_is_well() {
        assert_eq!(verdict("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"), Ok(()));
        let stuck = "HTTP/1.1 503 No\r\nContent-Length: 7\r\n\r\nstuck\x1b\n";
        assert!(verdict(stuck).unwrap_err().ends_with(r"is not well: stuck\x1b"));
        for other in [
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "SSH-2.0-OpenSSH_9.9\r\n",
        ] {
            assert!(verdict(other).unwrap_err().ends_with("is not skep's admin listener"));
        }
    }
}
