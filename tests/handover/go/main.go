// One peer with Go's nhooyr.io/websocket, for hand-overs: ADDRESS ROLE SERVER_ID.
//
// A binary ("server") sends each frame back. A phone ("client") sends frames, each when the
// one before has come back, and checks every byte; it pings as well. When stdin ends, it prints
// what it counted as JSON and exits with 0; with 1 at anything else.
//
// For GOPATH mode, with Debian's golang-nhooyr-websocket-dev.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"nhooyr.io/websocket"
)

var isOver atomic.Bool

func must(err error) {
	if err == nil || isOver.Load() {
		return
	}
	fmt.Printf("{\"failed\":%q}\n", err.Error())
	os.Exit(1)
}

func main() {
	address, role, serverID := os.Args[1], os.Args[2], os.Args[3]
	header := http.Header{"x-pyrycode-server": {serverID}, "user-agent": {"nhooyr"}}
	if role == "server" {
		header["x-pyrycode-version"] = []string{"1"}
	} else {
		header["x-pyrycode-token"] = []string{"t"}
	}
	ctx := context.Background()
	connection, _, err := websocket.Dial(ctx, "ws://"+address+"/v1/"+role,
		&websocket.DialOptions{HTTPHeader: header})
	must(err)
	connection.SetReadLimit(1 << 20)
	fmt.Println(`{"seen":"open"}`)
	var exchanged atomic.Int64
	if role == "server" {
		go echo(ctx, connection)
	} else {
		go talk(ctx, connection, &exchanged)
	}
	io.Copy(io.Discard, os.Stdin)
	isOver.Store(true)
	fmt.Printf("{\"exchanged\":%d,\"unanswered\":0}\n", exchanged.Load())
}

func echo(ctx context.Context, connection *websocket.Conn) {
	for {
		_, data, err := connection.Read(ctx)
		must(err)
		text := string(data)
		rest := strings.TrimPrefix(text, `{"conn_id":"`)
		id, frame, found := strings.Cut(rest, `","frame":`)
		if found {
			answer := `{"frame":` + strings.TrimSuffix(frame, "}") + `,"conn_id":"` + id + `"}`
			must(connection.Write(ctx, websocket.MessageText, []byte(answer)))
		}
	}
}

func talk(ctx context.Context, connection *websocket.Conn, exchanged *atomic.Int64) {
	answers := make(chan []byte)
	go func() {
		for {
			_, data, err := connection.Read(ctx)
			must(err)
			answers <- data
		}
	}()
	for number := int64(0); ; number++ {
		fill := number % 300
		if number%50 == 0 {
			fill = 60_000
		}
		sent := fmt.Sprintf(`{"n":%d,"fill":%q}`, number, strings.Repeat("é", int(fill)))
		must(connection.Write(ctx, websocket.MessageText, []byte(sent)))
		if received := string(<-answers); received != sent {
			must(fmt.Errorf("received %.100s instead of %.100s", received, sent))
		}
		if number%5 == 0 {
			within, cancel := context.WithTimeout(ctx, 30*time.Second)
			must(connection.Ping(within))
			cancel()
		}
		exchanged.Add(1)
		time.Sleep(2 * time.Millisecond)
	}
}
