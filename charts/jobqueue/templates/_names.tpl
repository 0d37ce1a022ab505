{{- define "jobqueue.labels" -}}
app.kubernetes.io/name: jobqueue
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "jobqueue.selector" -}}
app.kubernetes.io/name: jobqueue
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "jobqueue.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "jobqueue.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .uid }}
runAsGroup: {{ .uid }}
fsGroup: {{ .uid }}
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "jobqueue.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: { drop: [ALL] }
{{- end }}

{{- /* Of our own image, which writes nothing but what is mounted. */ -}}
{{- define "jobqueue.ownContainerSecurity" -}}
{{ include "jobqueue.containerSecurity" . }}
readOnlyRootFilesystem: true
{{- end }}

{{- define "jobqueue.password" -}}
valueFrom:
  secretKeyRef: { name: {{ .root.Values.passwordsSecret }}, key: {{ .key }} }
{{- end }}

{{- /* A password of the secret, before the URLs that refer to it. */ -}}
{{- define "jobqueue.passwordVariable" -}}
- name: {{ .variable }}
  {{- include "jobqueue.password" . | nindent 2 }}
{{- end }}

{{- define "jobqueue.brokerUrl" -}}
amqp://jobqueue:$(BROKER_PASSWORD)@{{ .Release.Name }}-broker:5672//
{{- end }}

{{- /* Variables from a mapping, those of `settings` winning: root, variables. */ -}}
{{- define "jobqueue.variables" -}}
{{- range $name, $value := merge (dict) .root.Values.settings .variables }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
