// TLS in front of a relay without it, with Go's crypto/tls: front DIRECTORY PORT RELAY_PORT.
package main

import (
	"crypto/tls"
	"io"
	"net"
	"os"
)

func main() {
	pair, err := tls.LoadX509KeyPair(os.Args[1]+"/cert.pem", os.Args[1]+"/key.pem")
	if err != nil {
		panic(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	listener, err := tls.Listen("tcp", "127.0.0.1:"+os.Args[2], config)
	if err != nil {
		panic(err)
	}
	for {
		client, err := listener.Accept()
		if err != nil {
			panic(err)
		}
		go func() {
			defer client.Close()
			relay, err := net.Dial("tcp", "127.0.0.1:"+os.Args[3])
			if err != nil {
				return
			}
			defer relay.Close()
			go func() {
				io.Copy(relay, client)
				relay.Close()
			}()
			io.Copy(client, relay)
		}()
	}
}
