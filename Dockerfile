# The product in an image of its own files only: one static binary, certificates, time zones, an unprivileged user.
# There is no shell; probes are HTTP (/chat/healthz, /chat/readyz), and stopping is SIGTERM with a drain.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o /out/chatbox . \
 && mkdir -p /out/etc/ssl/certs /out/usr/share /out/tmp \
 && cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ \
 && cp -r /usr/local/go/lib/time /out/usr/share/chatbox-time \
 && printf 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin\n' > /out/etc/passwd \
 && chmod 1777 /out/tmp

FROM scratch
COPY --from=build /out /
ENV ZONEINFO=/usr/share/chatbox-time/zoneinfo.zip
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/chatbox"]
CMD ["serve", "--config", "/etc/chatbox/chatbox.toml"]
