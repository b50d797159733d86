// A client with Go's crypto/tls: a health check in TLS 1.2 and in 1.3, each with a full handshake
// and a resumed one, to the end of the stream, which is an error without close_notify.
//
//	tls ADDRESS ROOTS.pem
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"os"
	"strings"
)

func main() {
	pem, err := os.ReadFile(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		log.Fatal("no certificate")
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := &tls.Config{
			RootCAs: roots, ServerName: "localhost", MinVersion: version, MaxVersion: version,
			ClientSessionCache: tls.NewLRUClientSessionCache(1),
		}
		for _, resumes := range []bool{false, true} {
			connection, err := tls.Dial("tcp", os.Args[1], config)
			if err != nil {
				log.Fatal(err)
			}
			fmt.Fprint(connection, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
			answer, err := io.ReadAll(connection)
			if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 200 OK\r\n") {
				log.Fatalf("%x: %v, %q", version, err, answer)
			}
			state := connection.ConnectionState()
			if state.Version != version || state.DidResume != resumes {
				log.Fatalf("%x: %x, resumed: %v", version, state.Version, state.DidResume)
			}
			connection.Close()
		}
	}
}
