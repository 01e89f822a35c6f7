package llmfake

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"net/http"
)

// fileName is what generated files are called.
const fileName = "plot.png"

// madeFile is a file that an answer has made.
type madeFile struct{ expired bool }

// picture is the contents of every generated file: a small PNG.
func picture() []byte {
	img := image.NewPaletted(image.Rect(0, 0, 16, 16), color.Palette{color.White, color.RGBA{R: 0x20, G: 0x60, B: 0xc0, A: 0xff}})
	for i := range 16 {
		img.SetColorIndex(i, 15-i*i/16, 1)
	}
	var b bytes.Buffer
	_ = png.Encode(&b, img) // a bytes.Buffer takes everything
	return b.Bytes()
}

// keepFile makes a file known under an address.
func (s *Server) keepFile(address string, expired bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.files) >= maxLines {
		clear(s.files)
	}
	s.files[address] = madeFile{expired: expired}
}

// file says whether an address is that of a file that can still be had.
func (s *Server) file(address string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, ok := s.files[address]
	return ok && !f.expired
}

// nextFile numbers files.
func (s *Server) nextFile() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.files) + 1
}

// makeContainerFile makes a file in a container of OpenAI.
func (s *Server) makeContainerFile(expired bool) (container, file string) {
	n := s.nextFile()
	container, file = fmt.Sprintf("cntr_%06d", n), fmt.Sprintf("cfile_%06d", n)
	s.keepFile(container+"/"+file, expired)
	return container, file
}

func (s *Server) serveFile(w http.ResponseWriter, r *http.Request) {
	if !s.file(r.PathValue("container") + "/" + r.PathValue("file")) {
		chatFormat{}.refuse(w, failure{status: http.StatusNotFound, typ: "invalid_request_error", message: "Container is expired."})
		return
	}
	w.Header().Set("Content-Type", "application/binary")
	_, _ = w.Write(picture())
}
