// Package e2e shows the promises on real parts: several processes of the real binary behind nginx without sticky
// sessions, a real redis-server, a FerretDB process, and a scripted language model that is asked over HTTP.
//
// It holds tests only. Each test names the promise it shows.
package e2e
