module github.com/real-rm/chatbox/dev

go 1.26.0

replace github.com/real-rm/chatbox => ../

require (
	github.com/alicebob/miniredis/v2 v2.40.0
	github.com/emersion/go-smtp v0.25.1
	github.com/golang-jwt/jwt/v5 v5.3.1
	github.com/real-rm/chatbox v0.0.0
)

require (
	github.com/emersion/go-sasl v0.0.0-20241020182733-b788ff22d5a6 // indirect
	github.com/yuin/gopher-lua v1.1.1 // indirect
)
