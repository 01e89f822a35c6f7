package files_test

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/real-rm/chatbox/providers/files"
)

// memory stands for the store of the service.
type memory map[string]string

func (m memory) Keep(_ context.Context, _, name, mime string, r io.Reader) (string, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return "", err
	}
	m[name] = mime + ": " + string(b)
	return "file-1", nil
}

// The files of an answer are collected while it streams, and taken in when it is whole. Their metadata goes into the
// answer's message.
func ExampleIntake_Take() {
	store := memory{}
	intake, err := files.NewIntake(files.IntakeOptions{Store: store})
	if err != nil {
		panic(err)
	}
	made := []files.Made{ // files.Made(*delta.File), one for each that the provider sent
		{Name: "data.csv", Open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("a,b\n1,2\n")), nil
		}},
		{Name: "chart", MIME: "image/png", URL: "https://charts.example.com/c.png"},
		{URL: "http://169.254.169.254/latest/meta-data"},
	}
	taken, err := intake.Take(context.Background(), "p01-session", made)
	fmt.Println(err) // logged; the answer is given all the same
	fmt.Println(taken.FileIDs)
	fmt.Println(taken.Links)
	fmt.Println(store["data.csv"])
	// Output:
	// take in file 3: fetch foreign file: address: its scheme is not https
	// [file-1]
	// [{chart image/png https://charts.example.com/c.png}]
	// text/csv: a,b
	// 1,2
}
