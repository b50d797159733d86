// The relay as a process, peers made with nhooyr.io/websocket, and a runner.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"time"

	"nhooyr.io/websocket"
)

// Longer than anything takes that is to happen at once.
const soon = 10 * time.Second

// failure is what check panics with; the runner reports it.
type failure string

func check(holds bool, format string, values ...interface{}) {
	if !holds {
		panic(failure(fmt.Sprintf(format, values...)))
	}
}

func must(err error) { check(err == nil, "%v", err) }

type relay struct {
	command *exec.Cmd
	address string
	exited  chan error
	// A second signal would end it at once.
	isSignalled bool
	peers       []*peer
}

func start(program string) *relay {
	command := exec.Command(program, "--insecure-listen", "127.0.0.1:0", "--metrics-listen=",
		"--rate-limit-per-minute", "0")
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "PYRYCODE_") {
			command.Env = append(command.Env, variable)
		}
	}
	// Should this process be killed, the relay is not to outlive it.
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := command.StderrPipe()
	must(err)
	must(command.Start())
	r := &relay{command: command, exited: make(chan error, 1)}
	listening := make(chan string, 1)
	go func() {
		found := regexp.MustCompile(`\bmsg=listening\b.* listen=(\S+)`)
		for log := bufio.NewScanner(stderr); log.Scan(); {
			if match := found.FindStringSubmatch(log.Text()); match != nil {
				listening <- match[1]
			}
		}
		r.exited <- command.Wait()
	}()
	select {
	case r.address = <-listening:
	case <-time.After(soon):
		command.Process.Kill()
		check(false, "the relay does not listen")
	}
	return r
}

// signal asks the relay to leave, once.
func (r *relay) signal() {
	if !r.isSignalled {
		r.isSignalled = true
		must(r.command.Process.Signal(syscall.SIGTERM))
	}
}

// end has the relay leave, which it must with status 0.
func (r *relay) end() {
	r.signal()
	select {
	case err := <-r.exited:
		check(err == nil, "exit after SIGTERM: %v", err)
	case <-time.After(soon):
		r.command.Process.Kill()
		check(false, "no exit after SIGTERM")
	}
}

// connected waits until so many peers hold a place.
func (r *relay) connected(binaries, phones int) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: soon}
	var health struct {
		Binaries int `json:"connected_binaries"`
		Phones   int `json:"connected_phones"`
	}
	for deadline := time.Now().Add(soon); ; time.Sleep(5 * time.Millisecond) {
		answer, err := client.Get("http://" + r.address + "/healthz")
		must(err)
		must(json.NewDecoder(answer.Body).Decode(&health))
		answer.Body.Close()
		if health.Binaries == binaries && health.Phones == phones {
			return
		}
		check(time.Now().Before(deadline), "not %d+%d connected: %+v", binaries, phones, health)
	}
}

// peer receives in a goroutine of its own, which also lets the library answer pings.
type peer struct {
	*websocket.Conn
	requestID string
	messages  chan string
	// Why receiving ended: sent when `messages` is complete and closed.
	ended chan error
	tcp   net.Conn
}

func (r *relay) dial(role, serverID string) *peer {
	p := &peer{messages: make(chan string, 4096), ended: make(chan error, 1)}
	header := http.Header{"X-Pyrycode-Server": {serverID}}
	if role == "server" {
		header.Set("x-pyrycode-version", "1")
	} else {
		header.Set("x-pyrycode-token", "t")
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (tcp net.Conn, err error) {
			p.tcp, err = new(net.Dialer).DialContext(ctx, network, address)
			return p.tcp, err
		},
	}
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	// It offers compression, as it does by default.
	conn, answer, err := websocket.Dial(ctx, "ws://"+r.address+"/v1/"+role,
		&websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}, HTTPHeader: header})
	must(err)
	check(answer.Header.Get("sec-websocket-extensions") == "" && conn.Subprotocol() == "",
		"something was negotiated")
	conn.SetReadLimit(1 << 20)
	p.Conn, p.requestID = conn, answer.Header.Get("x-request-id")
	r.peers = append(r.peers, p)
	go func() {
		for {
			kind, message, err := conn.Read(context.Background())
			if err == nil && kind != websocket.MessageText {
				err = errors.New("the relay sends text only")
			}
			if err != nil {
				p.ended <- err
				close(p.messages)
				return
			}
			p.messages <- string(message)
		}
	}()
	return p
}

// next is the next message, which must be `expected`.
func (p *peer) next(expected string) {
	select {
	case message, is := <-p.messages:
		if !is {
			check(false, "%v\nexpected %.200s", <-p.ended, expected)
		}
		check(message == expected, "%.200s\nexpected %.200s", message, expected)
	case <-time.After(soon):
		check(false, "no message; expected %.200s", expected)
	}
}

// closedWith expects the relay's close frame to say so.
func (p *peer) closedWith(code websocket.StatusCode, reason string) {
	select {
	case err := <-p.ended:
		var end websocket.CloseError
		// Not the one that this end sent.
		check(errors.As(err, &end) && strings.Contains(err.Error(), "received close frame"), "%v", err)
		check(end == websocket.CloseError{Code: code, Reason: reason}, "%v, not %d %q", end, code, reason)
	case <-time.After(soon):
		check(false, "no close; expected %d %q", code, reason)
	}
}

func (p *peer) send(kind websocket.MessageType, pieces ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	if len(pieces) == 1 {
		must(p.Write(ctx, kind, []byte(pieces[0])))
		return
	}
	message, err := p.Writer(ctx, kind)
	must(err)
	for _, piece := range pieces {
		if _, err := message.Write([]byte(piece)); err != nil {
			// The relay may refuse what it has seen of it: its close tells.
			return
		}
	}
	message.Close()
}

func (p *peer) isAlive() {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	must(p.Ping(ctx))
}

// run gives a scenario a relay of its own and tells why it failed.
func run(program string, scenario func(*relay)) (why interface{}) {
	var r *relay
	defer func() {
		why = recover()
		if _, is := why.(failure); why != nil && !is {
			panic(why)
		}
		if why != nil && r != nil {
			r.command.Process.Kill()
		}
	}()
	r = start(program)
	scenario(r)
	for _, p := range r.peers {
		p.tcp.Close()
	}
	r.end()
	return nil
}
