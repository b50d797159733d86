// The relay and Go's nhooyr.io/websocket: the library as phone and as binary.
//
//	peers RELAY [SCENARIO]...    every scenario, or those named, a relay each
//
// For GOPATH mode, with Debian's golang-nhooyr-websocket-dev.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"nhooyr.io/websocket"
)

const (
	messageMax = 256 * 1024
	text       = websocket.MessageText
	binary     = websocket.MessageBinary
)

// envelope is what the relay makes of a phone's frame, and takes for a phone.
func envelope(phone *peer, frame string) string {
	return fmt.Sprintf(`{"conn_id":%q,"frame":%s}`, phone.requestID, frame)
}

func closing(phone *peer, frame string, code int) string {
	return fmt.Sprintf(`{"conn_id":%q,"frame":%s,"close_code":%d}`, phone.requestID, frame, code)
}

func pair(r *relay) (home, phone *peer) {
	return r.dial("server", "home"), r.dial("client", "home")
}

// cut makes pieces of so many bytes; they may end within a character.
func cut(message string, size int) (pieces []string) {
	for ; len(message) > size; message = message[size:] {
		pieces = append(pieces, message[:size])
	}
	return append(pieces, message)
}

func textAndBinaryBothWays(r *relay) {
	home, phone := pair(r)
	for _, frame := range []string{`{ "b" : [1.50, 1E2], "a":"é\u00e9😀` + "\u2028\" }", "1", `"x"`, "[ ]"} {
		for _, kind := range []websocket.MessageType{text, binary} {
			phone.send(kind, frame)
			home.next(envelope(phone, frame))
			home.send(kind, envelope(phone, frame))
			phone.next(frame)
		}
	}
}

func orderIsKept(r *relay) {
	home, phone := pair(r)
	for number := 0; number < 2000; number++ {
		phone.send(text, strconv.Itoa(number))
		home.send(text, envelope(phone, strconv.Itoa(number)))
	}
	for number := 0; number < 2000; number++ {
		home.next(envelope(phone, strconv.Itoa(number)))
		phone.next(strconv.Itoa(number))
	}
}

func pingsAreAnswered(r *relay) {
	home, phone := pair(r)
	for count := 0; count < 3; count++ {
		home.isAlive()
		phone.isAlive()
	}
}

func theLargestMessage(r *relay) {
	home, phone := pair(r)
	frame := `"` + strings.Repeat("x", messageMax-2) + `"`
	phone.send(text, frame)
	home.next(envelope(phone, frame))
	content := strings.Repeat("y", messageMax-len(envelope(phone, `""`)))
	home.send(text, envelope(phone, `"`+content+`"`))
	phone.next(`"` + content + `"`)
	// And not one byte more, of either.
	phone.send(text, frame+" ")
	phone.closedWith(1009, "message too big")
	home.send(text, envelope(phone, `"`+content+`y"`))
	home.closedWith(1009, "message too big")
}

func messagesInPieces(r *relay) {
	home, phone := pair(r)
	frame := `["` + strings.Repeat("é", 30_000) + `"]`
	phone.send(text, cut(frame, 999)...)
	home.next(envelope(phone, frame))
	home.send(binary, cut(envelope(phone, frame), 777)...)
	phone.next(frame)
	phone.send(text, cut(`"`+strings.Repeat("x", messageMax)+`"`, 65_536)...)
	phone.closedWith(1009, "message too big")
}

func aCloseIsEchoed(r *relay) {
	holder := r.dial("server", "home")
	for _, code := range []websocket.StatusCode{1000, 1001, 3000, 4999, websocket.StatusNoStatusRcvd} {
		for _, p := range []*peer{r.dial("client", "home"), r.dial("server", fmt.Sprint("own-", code))} {
			reason := "bye"
			if code == websocket.StatusNoStatusRcvd {
				reason = ""
			}
			// Now its goroutine receives for sure, and sees the echo.
			p.isAlive()
			must(p.Close(code, reason))
			p.closedWith(code, reason)
		}
	}
	holder.isAlive()
}

func aBinaryClosesAPhone(r *relay) {
	home := r.dial("server", "home")
	for _, codes := range [][2]int{{1000, 1000}, {4001, 4001}, {1014, 1014}, {1005, 1011}, {7, 1011}} {
		phone := r.dial("client", "home")
		home.send(text, closing(phone, `"last"`, codes[0]))
		phone.next(`"last"`)
		phone.closedWith(websocket.StatusCode(codes[1]), "")
	}
	home.isAlive()
}

func noServerWithThatID(r *relay) {
	r.dial("client", "nobody").closedWith(4404, "no server with that id")
}

func tooManyPhones(r *relay) {
	home := r.dial("server", "home")
	var phones []*peer
	for len(phones) < 16 {
		phones = append(phones, r.dial("client", "home"))
	}
	r.dial("client", "home").closedWith(4429, "too many phones for server-id")
	must(phones[3].Close(1000, ""))
	home.next(fmt.Sprintf(`{"conn_id":%q,"close_code":1000}`, phones[3].requestID))
	again := r.dial("client", "home")
	again.send(text, "17")
	home.next(envelope(again, "17"))
}

func notJSON(r *relay) {
	_, phone := pair(r)
	phone.send(text, "{")
	phone.closedWith(1007, "frame is not valid JSON")
}

func aLivingIncumbentKeepsItsSlot(r *relay) {
	home, phone := pair(r)
	for _, rival := range []*peer{r.dial("server", "home"), r.dial("server", "home")} {
		rival.closedWith(4409, "server-id already claimed")
	}
	phone.send(text, "1")
	home.next(envelope(phone, "1"))
}

func aClaimInGraceTakesTheSlot(r *relay) {
	home, phone := pair(r)
	home.tcp.Close()
	r.connected(0, 1)
	late := r.dial("client", "home")
	r.dial("server", "home")
	phone.closedWith(4404, "binary reclaimed server-id")
	late.closedWith(4404, "binary reclaimed server-id")
}

func aFrameInGrace(r *relay) {
	home, phone := pair(r)
	must(home.Close(1000, ""))
	r.connected(0, 1)
	phone.send(text, "{}")
	phone.closedWith(4404, "binary disconnected")
}

func theRelayShutsDown(r *relay) {
	home, phone := pair(r)
	r.signal()
	home.closedWith(1001, "shutting down")
	phone.closedWith(1001, "shutting down")
}

func aPeerThatVanishes(r *relay) {
	home, phone := pair(r)
	phone.tcp.Close()
	r.connected(1, 0)
	home.tcp.Close()
	r.connected(0, 0)
}

var scenarios = []struct {
	name string
	run  func(*relay)
}{
	{"text_and_binary_both_ways", textAndBinaryBothWays},
	{"order_is_kept", orderIsKept},
	{"pings_are_answered", pingsAreAnswered},
	{"the_largest_message", theLargestMessage},
	{"messages_in_pieces", messagesInPieces},
	{"a_close_is_echoed", aCloseIsEchoed},
	{"a_binary_closes_a_phone", aBinaryClosesAPhone},
	{"no_server_with_that_id", noServerWithThatID},
	{"too_many_phones", tooManyPhones},
	{"not_json", notJSON},
	{"a_living_incumbent_keeps_its_slot", aLivingIncumbentKeepsItsSlot},
	{"a_claim_in_grace_takes_the_slot", aClaimInGraceTakesTheSlot},
	{"a_frame_in_grace", aFrameInGrace},
	{"the_relay_shuts_down", theRelayShutsDown},
	{"a_peer_that_vanishes", aPeerThatVanishes},
}

func main() {
	program, wanted := os.Args[1], " "+strings.Join(os.Args[2:], " ")+" "
	passed, failed := 0, 0
	for _, scenario := range scenarios {
		if len(os.Args) > 2 && !strings.Contains(wanted, " "+scenario.name+" ") {
			continue
		}
		started, verdict := time.Now(), "ok"
		why := run(program, scenario.run)
		if why != nil {
			verdict = "FAILED"
			failed++
		} else {
			passed++
		}
		fmt.Printf("nhooyr %s … %s (%.1f s)\n", scenario.name, verdict, time.Since(started).Seconds())
		if why != nil {
			fmt.Println(why)
		}
	}
	fmt.Printf("nhooyr: %d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		os.Exit(1)
	}
}
