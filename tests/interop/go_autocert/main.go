// A server as the Go relay has one: TLS with golang.org/x/crypto/acme/autocert and its
// DirCache. It makes the caches that the relay takes over, and shows that it takes back
// what the relay has written.
//
// autocert CACHE DOMAIN DIRECTORY-URL ROOTS.pem TLS-ADDRESS
//
// It prints "certificate SERIAL" (hexadecimal) once a handshake with itself has
// succeeded, and ends when its standard input does.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

func main() {
	cache, domain, directory, address := os.Args[1], os.Args[2], os.Args[3], os.Args[5]
	pem, err := os.ReadFile(os.Args[4])
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	manager := &autocert.Manager{
		Prompt:     autocert.AcceptTOS,
		Cache:      autocert.DirCache(cache),
		HostPolicy: autocert.HostWhitelist(domain),
		Client:     &acme.Client{DirectoryURL: directory, HTTPClient: client},
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			stream, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				server := tls.Server(stream, manager.TLSConfig())
				server.Handshake()
				server.Close()
			}()
		}
	}()
	// What Pebble issues is trusted by nothing here.
	session, err := tls.Dial("tcp", listener.Addr().String(),
		&tls.Config{ServerName: domain, InsecureSkipVerify: true})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("certificate %X\n", session.ConnectionState().PeerCertificates[0].SerialNumber)
	session.Close()
	io.Copy(io.Discard, os.Stdin)
}
