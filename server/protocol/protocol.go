// Package protocol is the wire protocol `chatbox.v1`: what clients may send, how it is checked, and the frames
// that the server makes itself. docs/protocol.md is its description for people, and a test holds the two together.
//
// Events of a session (user_message, ai_response, …) are encoded by package sessionstore, because they are stored
// and published in the very form in which they are sent. Everything here is pure: no I/O, no state; all functions
// may be called concurrently.
package protocol
